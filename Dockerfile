# LoRA Studio in a container, and the image of a Hugging Face Space. `make docker-check` follows these steps without Docker.
# The base image by name. Its digest stands in no file here, because it changes with every mend of Debian's packages; to build
# on one that you looked at, `--build-arg BASE=python:3.11-slim@sha256:...` (`docker buildx imagetools inspect` shows it).
ARG BASE=python:3.11-slim
FROM ${BASE}

# Which torch: the CPU build, or a CUDA one, for instance --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130.
# The CUDA wheels bring all of CUDA but the driver, which `docker run --gpus all` lends the container.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# Spaces run as this user. A volume that is mounted on /data for the first time takes its owner from here.
RUN useradd --uid 1000 --create-home studio && install -d -o 1000 -g 1000 /data

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app
COPY requirements.txt requirements-cpu.lock ./
# Of torch the index answers for what it gives; everything else has to be what the lock file's hashes say.
RUN pip install --index-url "$TORCH_INDEX" "$(grep -o '^torch==[0-9.]*' requirements.txt)" \
 && pip install --no-deps --require-hashes -r requirements-cpu.lock

COPY app.py container.sh LICENSE ./
COPY lora_studio lora_studio
COPY presets presets
COPY docs docs
RUN python -m compileall -q lora_studio

# The program's own files belong to root: the studio writes below its home and /data, and nowhere else.
USER 1000
ENV HOME=/home/studio HF_HUB_DISABLE_TELEMETRY=1 LORA_STUDIO_HOST=0.0.0.0 LORA_STUDIO_PORT=7860
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['LORA_STUDIO_PORT'])"]
CMD ["sh", "container.sh"]
