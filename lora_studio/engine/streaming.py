"""Tokens of several columns to growing text: whole characters, ended by an end token or a stop text, 10 to 15 times a
second."""

import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

PIECE_SECONDS = 0.075
HALF_CHARACTER = "\ufffd"

Pieces = Callable[[list[str], list[int]], None]
"""Gets the text added to each column since the last call, and each column's tokens so far."""


class ColumnText:
    """The growing text of one column. What may still change is held back: a character whose bytes are not all there,
    and the beginning of a stop text. `opening` is what the prompt wrote of the answer already.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        stop_strings: Sequence[str] = (),
        opening: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._stop_strings = stop_strings
        self._window = 0  # decoding starts here: a token's text can depend on the one before it
        self._decoded = 0
        self._waiting = opening
        self.ids: list[int] = []
        self.text = ""
        self.finish = ""
        self.first_token = 0.0
        self.last_token = 0.0

    @property
    def ended(self) -> bool:
        return bool(self.finish)

    def add(self, token: int, now: float) -> None:
        """Takes the next token; after its end the batch only pads this column."""
        if self.ended:
            return
        if not self.ids:
            self.first_token = now
        self.last_token = now
        self.ids.append(token)
        if token in self._end_ids:
            self.finish = "eos"
        elif self._stop_strings:
            self._read(all_of_it=False)
            if self._stop_at() is not None:
                self.finish = "stop_string"

    def take(self, *, all_of_it: bool = False) -> str:
        """The text that came since the last call."""
        self._read(all_of_it=all_of_it)
        stop = self._stop_at()
        if stop is None:
            stop = len(self._waiting) - (0 if all_of_it else self._begun())
            piece, self._waiting = self._waiting[:stop], self._waiting[stop:]
        else:
            piece, self._waiting = self._waiting[:stop], ""
        self.text += piece
        return piece

    def _read(self, *, all_of_it: bool) -> None:
        """Decodes the tokens that came since the last time."""
        before, now = self._decode(self._window, self._decoded), self._decode(self._window, len(self.ids))
        if now.endswith(HALF_CHARACTER) and not all_of_it:
            return
        self._window, self._decoded = self._decoded, len(self.ids)
        self._waiting += now[len(before) :]

    def _decode(self, start: int, stop: int) -> str:
        return str(self._tokenizer.decode(self.ids[start:stop], skip_special_tokens=True))

    def _stop_at(self) -> int | None:
        """Where the first stop text begins."""
        found = [at for stop in self._stop_strings if (at := self._waiting.find(stop)) >= 0]
        return min(found, default=None)

    def _begun(self) -> int:
        """Length of the end that may be the beginning of a stop text."""
        for length in range(min(len(self._waiting), max(map(len, self._stop_strings), default=1) - 1), 0, -1):
            if any(stop.startswith(self._waiting[-length:]) for stop in self._stop_strings):
                return length
        return 0


class Streamer(BaseStreamer):
    """Gets one token per column and step from `generate` and hands text on."""

    def __init__(self, columns: Sequence[ColumnText], on_pieces: Pieces, seconds: float = PIECE_SECONDS) -> None:
        self.columns = columns
        self._on_pieces = on_pieces
        self._seconds = seconds
        self._prompts_seen = False
        self._handed_on = time.monotonic()

    def put(self, value: torch.Tensor) -> None:
        if not self._prompts_seen:  # the first value holds the prompts, [columns, tokens]
            self._prompts_seen = True
            return
        now = time.monotonic()
        for column, token in zip(self.columns, value.tolist(), strict=True):
            column.add(token, now)
        if now - self._handed_on >= self._seconds:
            self._hand_on(all_of_it=False)

    def end(self) -> None:
        self._hand_on(all_of_it=True)

    def _hand_on(self, *, all_of_it: bool) -> None:
        self._handed_on = time.monotonic()
        texts = [column.take(all_of_it=all_of_it or column.ended) for column in self.columns]
        if any(texts):
            self._on_pieces(texts, [len(column.ids) for column in self.columns])


class Ending(StoppingCriteria):
    """Ends each column with its own last token, and all of them when asked to; `generate` asks after each token."""

    def __init__(self, columns: Sequence[ColumnText], asked: Callable[[], bool]) -> None:
        self._columns, self._asked = columns, asked

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        stopped = self._asked()
        return torch.tensor([stopped or column.ended for column in self._columns], device=input_ids.device)
