"""The web app's start, which a Space runs as well. Its flags are those of the `ui` command."""

import argparse
import sys

from lora_studio.access import serving
from lora_studio.errors import StudioError
from lora_studio.ui.serve import launch
from lora_studio.workspace import Workspace


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the LoRA Studio page.", allow_abbrev=False)
    parser.add_argument("--workspace", help="folder of uploads and runs (else LORA_STUDIO_HOME, else ./workspace)")
    serving.add_flags(parser)
    given = parser.parse_args()
    try:
        launch(Workspace.find(given.workspace), serving.from_flags(given))
    except StudioError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
