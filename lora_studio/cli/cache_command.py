"""`cache`: how much room prepared data take, and how to get it back."""

import argparse

from lora_studio.cli.terminal import print_json
from lora_studio.data.cache import CACHE_LIMIT
from lora_studio.workspace import Workspace


def cache(workspace: Workspace, given: argparse.Namespace) -> int:
    """Shows the cache's size and limit, or clears it."""
    folder = str(workspace.cache_folder)
    if given.action == "clear":
        freed = workspace.clear_cache()
        if given.json:
            print_json({"folder": folder, "freed_bytes": freed})
        else:
            print(f"Freed {freed / 1e6:,.1f} MB in {folder}.")
        return 0
    size = workspace.cache_size()
    if given.json:
        print_json({"folder": folder, "bytes": size, "limit_bytes": CACHE_LIMIT})
    else:
        print(f"{size / 1e6:,.1f} MB of prepared data in {folder} (at most {CACHE_LIMIT / 1e9:,.1f} GB are kept).")
    return 0
