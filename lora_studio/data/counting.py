"""How many rows of a file can be used, counted in a process of its own: `python -m lora_studio.data.counting FILE`.

Prints the number; nothing, with exit code 1, for a file that can't be read or that takes more than it may.
"""

import signal
import sys
from pathlib import Path

from lora_studio.data.records import Record, open_source
from lora_studio.errors import StudioError
from lora_studio.memory_limit import go_first, limited

CPU_SECONDS = 10.0
MAX_BYTES = 1 << 30


def usable_rows(path: Path) -> int:
    """Rows of a file that can be read. Raises `StudioError` where the file can't, or takes too much memory."""
    with limited(most=MAX_BYTES):
        return sum(isinstance(row, Record) for row in open_source(path).rows())


def main() -> int:
    """Counts the file that the command names and returns the exit code."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    go_first()
    try:
        print(usable_rows(Path(sys.argv[1])) or "")
    except StudioError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
