"""A test file answered by base and adapters, and measured.
May import engine.chat, engine.models and engine.runtime.
"""
