# Image with `qvl` and `qvl-train` for NVIDIA GPUs with NCCL. The driver's own libraries (libcuda,
# libnvidia-ml) come from the node through NVIDIA's container toolkit.
#
# Never built: development had no GPU and no CUDA toolkit. `make check-cuda` type-checks the code.
#
#     docker build -f images/qvl-train-cuda.Dockerfile -t qvl-train:0.1.0-cuda .
ARG CUDA=12.9.1
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build
ARG CUDA_COMPUTE_CAP=80
ENV CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP} CARGO_HOME=/opt/cargo RUSTUP_HOME=/opt/rustup \
    PATH=/opt/cargo/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl g++ libnccl-dev
RUN curl -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain 1.95
WORKDIR /src
COPY . .
RUN cargo build --release --locked --features cuda,nccl --bins
# The driver is not in the image, so its library is not copied: the stub is for linking only.
RUN LD_LIBRARY_PATH=/usr/local/cuda/lib64/stubs images/rootfs /out target/release/qvl target/release/qvl-train \
    && find /out -name 'libcuda.so*' -delete

FROM scratch
COPY --from=build /out /
COPY examples/digits/base /usr/share/qvl/smoke/base
COPY images/smoke/train.json /usr/share/qvl/smoke/train.json
ENV PATH=/usr/local/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/qvl"]
