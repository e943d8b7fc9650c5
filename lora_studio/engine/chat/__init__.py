"""The chat session: the child behind pipes, generation, and token probabilities. May import engine.models and
engine.runtime."""
