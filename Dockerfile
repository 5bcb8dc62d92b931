# CPU:  docker build -t synthia-batch .
# CUDA: docker build -t synthia-batch --build-arg ACCELERATOR=cuda .
#       docker run --gpus all --ipc=host -v "$PWD:/data" synthia-batch run questions.jsonl
# The driver for GPUs is the host's (580 or newer: torch brings CUDA 13); the image has the rest.
FROM python:3.12-slim-bookworm

ARG ACCELERATOR=cpu

# Triton compiles a small module with the C compiler when an engine starts on a GPU. Debian keeps no old versions
# that could be named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/synthia-batch
COPY . .
RUN tools/install_image.sh "$ACCELERATOR" /opt/venv

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/data/.cache

# A user without rights; -u "$(id -u):$(id -g)" makes its files yours.
RUN useradd --create-home --uid 1000 batch && mkdir /data && chown batch /data
USER 1000
WORKDIR /data
VOLUME /data
ENTRYPOINT ["synthia-batch"]
CMD ["--help"]
