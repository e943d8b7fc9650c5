"""The built-in model (a real, tiny, pretrained Qwen3), its data sets, and the program that makes them.

Everything here comes out of `python -m lora_studio.demo.build`: conversations are generated with a fixed seed, the
tokenizer and the model are trained on them, and small data sets for fine-tuning are written beside. Nothing in the
rest of the package imports this one; it is found by its folders `model/` and `data/`.
"""
