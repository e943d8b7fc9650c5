"""The built-in model (a real, tiny, pretrained Qwen3), its datasets, and the main job without a browser.

`model/` and `data/` come out of `python -m tools.demo_model.build` in the repository. Nothing in the rest of the
package imports this one; it is found by its folders.

May import everything but ui, api and cli.
"""
