"""Training and inference: the only package with torch, transformers, peft and trl. It runs only in child processes.

May import every package without torch and gradio, except access and api. Inside, the order is runtime, models, chat,
evaluate, train, export; each may import those before it.
"""

import os

from lora_studio.engine.quick_imports import compile_at_first_call

# Read once when the libraries are imported, so it has to stand before: nothing is ever reported to anybody.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Waiting OpenMP threads sleep instead of spinning: with a browser on the same cores a step is ten times as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
compile_at_first_call()
