"""`python -m lora_studio COMMAND`: see cli."""

import sys

from lora_studio.cli import main

if __name__ == "__main__":
    sys.exit(main())
