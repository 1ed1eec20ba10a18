# Image with `qvl` and `qvl-train` for CPUs: the pods of a job. It holds a tiny model and four
# sentences too, for `helm test`.
#
#     docker build -f images/qvl-train.Dockerfile -t qvl-train:0.1.0 .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bins
RUN images/rootfs /out target/release/qvl target/release/qvl-train

FROM scratch
COPY --from=build /out /
COPY examples/digits/base /usr/share/qvl/smoke/base
COPY images/smoke/train.json /usr/share/qvl/smoke/train.json
ENV PATH=/usr/local/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/qvl"]
