"""Data sets of the Hugging Face Hub to rows, streamed; offline, what the local cache holds of them."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from lora_studio.data.messages import BadRow, Reading, Record, Tally, shorten
from lora_studio.data.readers.arrow import CellReader
from lora_studio.errors import StudioError
from lora_studio.models.hub import DATASET_PREFIX, parse_dataset_name

_WAY_OUT = (
    "Check the name, config, split and revision, and whether this machine can reach the Hub (private and gated "
    "datasets need HF_TOKEN in the environment). Without a network, download the files of the dataset and give "
    "their folder."
)
_PATIENCE = 10.0  # seconds
_BATCH_ROWS = 1000


def read_hub(name: str) -> tuple[Reading, str]:
    """How to read a data set of the Hub, and its name with the revision that is read."""
    plain, options = parse_dataset_name(name)
    offline = _is_offline()
    revision = options.get("revision")
    if not offline:
        revision = _resolve(plain, revision)
    split = options.get("split", "train")
    sentence = f"Split `{split}` of the Hub dataset {plain}" + (f" at revision {revision}." if revision else ".")
    query = {"config": options.get("config"), "split": split, "revision": revision}
    named = urlencode({key: value for key, value in query.items() if value}, quote_via=quote)
    resolved = f"{DATASET_PREFIX}{plain}?{named}"

    def load() -> Any:
        return _load(plain, options.get("config"), split, revision, streaming=not offline)

    tally = Tally()
    next(_rows(load(), plain, tally), None)
    notes = [sentence, *(["Read from the local cache."] if offline else [])]
    return Reading(lambda: _rows(load(), plain, tally), notes, tally), resolved


def _rows(rows: Any, name: str, tally: Tally) -> Iterator[Record | BadRow]:
    number = 0
    tally.clear()
    try:
        for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
            cells = CellReader(table.schema, tally)
            for batch in table.to_batches():
                for fields in cells.rows(batch):
                    number += 1
                    yield Record(number, fields)
    except _faults() as error:
        reason = f"Reading {name} from the Hub failed after row {number}: {shorten(str(error))}."
        raise StudioError(reason, "Try again, or download the files of the dataset and give their folder.") from None


def _load(name: str, config: str | None, split: str, revision: str | None, *, streaming: bool) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, streaming=streaming)
    except _faults() as error:
        raise StudioError(f"The Hub dataset {name} cannot be read: {shorten(str(error), 300)}", _WAY_OUT) from None


def _resolve(name: str, revision: str | None) -> str | None:
    """The current commit of a revision, so that training reads what the preview showed."""
    import huggingface_hub

    try:
        return huggingface_hub.dataset_info(name, revision=revision, timeout=_PATIENCE).sha
    except _faults() as error:
        raise StudioError(f"The Hub dataset {name} was not found: {shorten(str(error), 300)}", _WAY_OUT) from None


def _faults() -> tuple[type[Exception], ...]:
    """Exceptions of the Hub's libraries for wrong names, a missing network and damaged files."""
    from huggingface_hub.utils import httpx

    return (OSError, ValueError, RuntimeError, ImportError, httpx.HTTPError)


def _is_offline() -> bool:
    import huggingface_hub.constants

    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)
