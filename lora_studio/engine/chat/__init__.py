"""Answers: the session behind pipes, generation, and the probabilities of tokens.
May import engine.models and engine.runtime.
"""
