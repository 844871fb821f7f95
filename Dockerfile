# CPU by default. CUDA: --build-arg BASE=nvidia/cuda:13.0.0-devel-ubuntu24.04
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --build-arg MMCV_CUDA=1
ARG BASE=python:3.11-bookworm
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG MMCV_CUDA=0
# No GPU is visible in a build, so that torch cannot ask it for its architecture; PTX serves newer ones.
ARG TORCH_CUDA_ARCH_LIST="7.5;8.0;8.6;8.9;9.0+PTX"
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends build-essential ca-certificates git libgl1 libglib2.0-0 \
    && { command -v python3.11 || { apt-get install -y --no-install-recommends gnupg software-properties-common \
        && add-apt-repository -y ppa:deadsnakes/ppa \
        && apt-get install -y --no-install-recommends python3.11 python3.11-venv python3.11-dev; }; } \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /mm2onnx
COPY . .
RUN make env TORCH_INDEX=${TORCH_INDEX} MMCV_CUDA=${MMCV_CUDA} && rm -rf ~/.cache
ENV PATH=/mm2onnx/.venv/bin:${PATH}
WORKDIR /work
CMD ["mm2onnx", "--help"]
