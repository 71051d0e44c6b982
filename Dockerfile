# syntax=docker/dockerfile:1
# The server without a GPU: to try it, for tests, and where no card is.
#
#   docker build --build-arg TORCH_INDEX=URL -t img2img-server:cpu .
#   docker run --stop-timeout 45 -p 127.0.0.1:8000:8000 -v img2img:/var/cache/img2img \
#       -e IMG2IMG_API_KEYS=... img2img-server:cpu
#
# TORCH_INDEX is PyTorch's CPU index, which docs/deployment.md names. Left out, torch comes
# from the default index, on x86-64 with gigabytes of CUDA's libraries that nothing here loads.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python -m venv /opt/img2img
ENV PATH=/opt/img2img/bin:$PATH
WORKDIR /build
# First what changes seldom. torch by its pin alone, then what is listed, each file by its hash;
# last what torch's build needs besides.
ARG TORCH=2.13.0
# pip takes no index for one that is blank.
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.lock ./
RUN PIP_INDEX_URL="${TORCH_INDEX}" pip install --no-deps "torch==${TORCH}" \
    && pip install --no-deps --require-hashes -r requirements.lock \
    && pip install "torch==${TORCH}"
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY pipelines pipelines
COPY models models
# Of pyproject.toml's extras, with commas: `ray` for a cluster of Ray.
ARG EXTRAS=""
# pyproject.toml pins the extras.
# hadolint ignore=DL3013
RUN pip install --no-deps . \
    && if [ -n "${EXTRAS}" ]; then pip install "img2img-server[${EXTRAS}]"; fi \
    && pip check \
    && img2img --version

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="img2img-server" \
      org.opencontainers.image.description="Image-to-image generation with Stable Diffusion 1.x as an HTTP API, on the CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
RUN groupadd --gid 10001 img2img \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/img2img \
        --shell /usr/sbin/nologin img2img \
    && install --directory --owner=img2img --group=img2img /var/cache/img2img
COPY --from=build /opt/img2img /opt/img2img
ENV PATH=/opt/img2img/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/cache/img2img/huggingface \
    IMG2IMG_DEVICE=cpu \
    IMG2IMG_HOST=0.0.0.0 \
    IMG2IMG_PORT=8000
# Weights, and keys if the server is told no database: they outlive the container.
VOLUME /var/cache/img2img
WORKDIR /var/cache/img2img
USER 10001:10001
EXPOSE 8000
# Ready, not merely alive. The first start may download for minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['IMG2IMG_PORT']}/health/ready\", timeout=4)"]
# In exec form, so that SIGTERM reaches the server itself, which then drains and exits with 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["img2img"]
CMD ["serve"]
