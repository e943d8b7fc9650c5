"""From files to examples: the one path that preview and training share. No torch, no gradio."""
