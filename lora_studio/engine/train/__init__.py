"""The training program, its trainers and callbacks, and what it writes.
May import engine.models, engine.chat and engine.runtime.
"""
