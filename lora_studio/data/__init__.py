"""From data files to training examples: the one path that the preview and the training share.

May import config and models; no torch, no gradio.
"""
