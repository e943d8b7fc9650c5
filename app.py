"""The web app's start, which a Space runs as well: host, port and workspace from arguments or environment."""

import argparse
import os
import sys

from lora_studio.errors import StudioError
from lora_studio.ui.build import launch
from lora_studio.workspace import Workspace


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the LoRA Studio page.")
    parser.add_argument("--host", default=os.environ.get("LORA_STUDIO_HOST", "127.0.0.1"), help="address to listen on")
    parser.add_argument("--port", type=int, default=int(os.environ.get("LORA_STUDIO_PORT", "7860")))
    parser.add_argument("--workspace", help="folder of uploads and runs (else LORA_STUDIO_HOME, else ./workspace)")
    given = parser.parse_args()
    try:
        launch(Workspace.find(given.workspace), given.host, given.port)
    except StudioError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
