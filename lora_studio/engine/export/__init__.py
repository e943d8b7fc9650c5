"""Writes adapters in the formats of other programs, and verifies the result. May import engine.chat, engine.models and
engine.runtime."""
