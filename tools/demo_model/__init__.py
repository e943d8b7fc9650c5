"""The generator of the built-in model (a real, tiny, pretrained Qwen3) and of its data sets: see `build`.

Conversations are generated with a fixed seed, tokenizer and model are trained on them, and small data sets for
fine-tuning are written beside. What comes out is shipped in `lora_studio/demo`.
"""
