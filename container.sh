#!/bin/sh
# Starts the page in a container. Runs, uploads and models are kept on /data where that is mounted and may be written, else
# below the home folder, where they go with the container. HF_ENDPOINT, HF_TOKEN and all LORA_STUDIO_ variables pass through.
data="${LORA_STUDIO_DATA:-/data}"
place="$HOME"
if mountpoint -q "$data" && [ -w "$data" ]; then place="$data"; fi
export LORA_STUDIO_HOME="${LORA_STUDIO_HOME:-$place/workspace}" HF_HOME="${HF_HOME:-$place/huggingface}"
export TMPDIR="${TMPDIR:-$HOME/tmp}"
mkdir -p "$TMPDIR"
exec python app.py "$@"
