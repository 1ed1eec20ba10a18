# Image with `qvl`: operator, collector, node agent, doctor.
#
#     docker build -f images/qvl.Dockerfile -t qvl:0.1.0 .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --no-default-features --bin qvl
RUN images/rootfs /out target/release/qvl

FROM scratch
COPY --from=build /out /
ENV PATH=/usr/local/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/qvl"]
