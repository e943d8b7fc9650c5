"""Who may do what, who asks, and which requests get in.
May import all packages above it; no gradio.
"""
