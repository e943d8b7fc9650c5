"""The page: the only place with gradio. Tabs draw and wire; plain functions think."""
