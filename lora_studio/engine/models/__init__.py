"""Base models, tokenizers and adapters in memory.
May import engine.runtime.
"""
