"""The rows of the table of runs, read again only where something changed, so that a thousand runs cost a glance."""

import os

from lora_studio.events import RunState
from lora_studio.files import bytes_in
from lora_studio.overview import overview
from lora_studio.ui.run_table import Row
from lora_studio.workspace import RunFolder, Workspace

MOST_KEPT = 5000


class Board:
    """Overviews and sizes by run. A run whose state is the same object, with untouched labels, is not read again."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._rows: dict[str, tuple[int, Row]] = {}
        self._sizes: dict[str, tuple[tuple[object, ...], int]] = {}

    def rows(self, states: list[RunState]) -> list[Row]:
        """A row for each run, without its size."""
        kept, found = self._rows, {}
        for state in states:
            run = RunFolder(self._workspace.runs_folder / state.id)
            touched = _touched(str(run.labels))
            before = kept.get(state.id)
            if before is not None and before[0] == touched and before[1].state is state:
                found[state.id] = before
            else:
                found[state.id] = (touched, Row(overview(run, state), state))
        # Visitors see different runs: rows of others are kept, until they are very many.
        self._rows = {**kept, **found} if len(kept) < MOST_KEPT else found
        self._sizes = {run_id: size for run_id, size in self._sizes.items() if run_id in self._rows}
        return [row for _, row in found.values()]

    def size(self, state: RunState) -> int:
        """Bytes of the run's folder; of one that goes on, as of its last checkpoint."""
        run = RunFolder(self._workspace.runs_folder / state.id)
        mark = (state.state, state.events if state.final else 0, _touched(str(run.checkpoints)))
        known = self._sizes.get(state.id)
        if known is None or known[0] != mark:
            known = self._sizes[state.id] = (mark, bytes_in(run.path))
        return known[1]


def _touched(path: str) -> int:
    """When a file or folder was changed; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0
