"""From files to examples: the one path that preview and training share.
May import config and models; no torch, no gradio.
"""
