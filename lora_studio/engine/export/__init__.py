"""An adapter written in a form that another program reads, and tried.
May import engine.chat, engine.models and engine.runtime.
"""
