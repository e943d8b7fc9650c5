"""The input and output of an export target's program, and the verification of its result.

A program is a function `export_NAME(work, *, SETTINGS) -> ExportResult`. Verification compares a greedy answer and its
log-probabilities with those of base and adapter.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from lora_studio.engine.chat.generate import Column, generate, greedy, prompt_ids
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, fitting, load_base
from lora_studio.engine.models.source import read_config, without_weights
from lora_studio.engine.models.weights import put_on, read_weights
from lora_studio.engine.runtime import EventLog, StopSignal, repeating
from lora_studio.errors import StudioError
from lora_studio.export.targets import sizes_of
from lora_studio.files import JsonObject, bytes_in
from lora_studio.jobs.events import RunState, Warned, read_state
from lora_studio.models.adapter_files import WEIGHTS_FILE
from lora_studio.models.adapters import read_card, read_header
from lora_studio.workspace import RunFolder, model_source, safe_name

BLOCK, LOOK_SECONDS = 1 << 22, 0.5


@dataclass(frozen=True)
class ExportContext:
    """An adapter to export: its folder, its run if it has one, and `out`, the empty folder for the result.

    `title` is the adapter's title, `name` the same as a file name; `final` is where `out` is moved when it is complete;
    `trial` says whether to verify the result.
    """

    adapter: Path
    run: RunFolder | None
    out: Path
    final: Path
    title: str
    trial: bool
    log: EventLog
    stop: StopSignal

    @property
    def name(self) -> str:
        """The title as a file name."""
        return plain_name(self.title)

    @property
    def card(self) -> JsonObject:
        """The adapter's studio.json: base, revision, quantization, system prompt."""
        return read_card(self.adapter).values

    def of_run(self) -> RunFolder:
        """The run, for targets that need one. Raises `StudioError` if it was deleted meanwhile."""
        if self.run is None or not self.run.config.is_file():
            raise StudioError("The run of this adapter no longer exists.", "Choose another one.")
        return self.run

    def state(self) -> RunState:
        """The run's state, folded from its events."""
        return read_state(self.of_run().events)

    def warn(self, words: str) -> None:
        """Logs a warning that does not end the export."""
        self.log.emit(Warned(time.time(), words))

    def growing(self, total: int) -> AbstractContextManager[None]:
        """The phase in which a library writes into `out`: progress is the folder's size, of about `total` bytes."""
        self.log.phase("write", total, "bytes")
        return repeating(lambda: self.log.progress(min(bytes_in(self.out), total), total), LOOK_SECONDS)


@dataclass(frozen=True)
class ExportResult:
    """The result: a sentence on its use, a command to copy, a link, and the outcome of the verification.

    `same` says whether the result answered like the adapter; None if it was not verified or need not be the same.
    `missing` names what could not be produced here; "" if nothing is missing.
    """

    words: str
    command: str = ""
    link: str = ""
    tried: str = ""
    same: bool | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    missing: str = ""


def base_to_name(work: ExportContext, base_name: str, *, keep_local: bool = False) -> str:
    """The base's name in the result: the given name, else its own. Raises `StudioError` for a local folder."""
    own = str(work.card.get("base_model") or "")
    if base_name.strip():
        return base_name.strip()
    if is_local(own) and not keep_local:
        raise StudioError(
            f"The base of this adapter is a folder that only exists on this machine: {own}.",
            "Set its public name with base_name (--base-name OWNER/NAME).",
        )
    return own


def is_local(name: str) -> bool:
    """Whether the name of a model or data set is a local path."""
    return name.startswith((".", "/", "~", "\\")) or (name != "" and os.path.exists(model_source(name)) and "/" in name)


def blocks(path: Path) -> Iterator[bytes]:
    """Yields a file's content in blocks."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def copy_files(work: ExportContext, files: Sequence[Path], target: Path) -> None:
    """Copies files into a folder with progress in bytes; can be stopped."""
    total, done = sum(path.stat().st_size for path in files), 0
    work.log.phase("copy", total, "bytes")
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        with (target / path.name).open("wb") as copy:
            for block in blocks(path):
                copy.write(block)
                done += len(block)
                work.log.progress(done, total)
                work.stop.check()


def last_line(errors: str) -> str:
    """What a failed program says in the end: of a traceback the error alone."""
    return (errors.strip().splitlines() or ["it says nothing"])[-1][:300]


def plain_name(title: str) -> str:
    """A title as the name of a file or a served model: letters, digits, dot, dash and underscore."""
    return safe_name(title.replace("/", " "), "adapter")


QUESTION = "Hello! What can you do?"
TOKENS = 24
EXACT = 1e-3
"""Scores of two identical float32 models differ by less: the order of summation varies."""


@dataclass(frozen=True)
class Spoken:
    """The prompt's tokens, the scores of the next token (`[vocabulary]`), and the answer."""

    prompt: tuple[int, ...]
    scores: torch.Tensor
    text: str

    def difference(self, other: "Spoken") -> float:
        """The largest difference between two scores; infinite if the prompts differ or a score is not finite."""
        if self.prompt != other.prompt or self.scores.shape != other.scores.shape:
            return math.inf
        largest = float((self.scores - other.scores).abs().max())
        return largest if math.isfinite(largest) else math.inf


def ask(loaded: LoadedModel, adapter: str | None, card: Mapping[str, Any]) -> Spoken:
    """Prompts a model the way the adapter was trained."""
    system = [{"role": "system", "content": card["system_prompt"]}] if card.get("system_prompt") else []
    column = Column(adapter, [*system, {"role": "user", "content": QUESTION}])
    thinking = card.get("enable_thinking")
    prompt = prompt_ids(loaded, column, thinking)
    with torch.no_grad(), loaded.use_adapter(adapter) as model:
        ids = torch.tensor([prompt], device=loaded.model.device)
        scores = model(input_ids=ids).logits[0, -1].float()
    (answer,) = generate(loaded, [column], greedy(loaded, TOKENS), enable_thinking=thinking)
    return Spoken(tuple(prompt), scores, answer.text.strip())


def why_not(work: ExportContext, bytes_a_weight: int) -> str:
    """Why the result cannot be verified here; "" if it can. The model has to fit in memory."""
    if not work.trial:
        return "Not tested, as requested."
    parameters = sizes_of(work.adapter).parameters or 0
    needed, free = parameters * bytes_a_weight * 1.2, psutil.virtual_memory().available
    if needed > free:
        return f"Not tested: this needs about {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free."
    return ""


def load_adapters(
    work: ExportContext, folders: Mapping[str, Path], dtype: torch.dtype, *, in_full: bool = False
) -> LoadedModel:
    """The base in that precision with these adapters on top, by column name.

    With `in_full`, a base stored in 4 or 8 bits is dequantized to that precision.
    """
    return _put_adapters(work, _load_base(work, dtype, in_full=in_full), folders)


def _load_base(work: ExportContext, dtype: torch.dtype, *, in_full: bool = False) -> LoadedModel:
    work.log.phase("model")
    base, revision = str(work.card["base_model"]), work.card.get("revision")
    return load_base(base, revision=revision, dtype=dtype, log=work.log, in_full=in_full)


def _put_adapters(work: ExportContext, loaded: LoadedModel, folders: Mapping[str, Path]) -> LoadedModel:
    add_adapters(loaded, folders)
    for words in dict.fromkeys(words for notes in loaded.notes.values() for words in notes):
        work.warn(words)
    return loaded


def try_adapter(work: ExportContext, exported: Path) -> tuple[str, bool | None]:
    """Whether the exported adapter answers like the original, in words.

    Raises `StudioError` if it matches no module of its base: nobody could use it.
    """
    try:
        if note := text_model_note(work):
            work.warn(note)
        if reason := why_not(work, 4):
            bare = without_weights(str(work.card["base_model"]), work.card.get("revision"))
        else:
            loaded = _load_base(work, torch.float32)
    except StudioError as error:
        return f"Not tested: {error.message}", None
    if reason:
        check_places(work, bare)
        return reason, None
    _put_adapters(work, loaded, {"own": work.adapter, "made": exported})
    work.log.phase("try")
    own, other = ask(loaded, "own", work.card), ask(loaded, "made", work.card)
    return verdict(own, other, exact=True)


def check_places(work: ExportContext, bare: PreTrainedModel) -> None:
    """Warns about parts of the adapter that match no module of its base. `bare` is the base without weights.

    Raises `StudioError` if no part matches.
    """
    base = str(work.card["base_model"])
    with fitting(work.adapter, base):
        weights = read_weights(work.adapter, bare, base)
        put_on(bare, weights, "default", base)
    for words in weights.notes:
        work.warn(words)


def text_model_note(work: ExportContext) -> str:
    """A note for an adapter on the text model of a multimodal checkpoint; "" for all others."""
    config = read_config(str(work.card["base_model"]), work.card.get("revision"))
    stored = (config.architectures or [""])[0]
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    text = getattr(model, "__name__", stored)
    if stored == text or not stored.endswith("ForConditionalGeneration"):
        return ""
    if any("language_model." in name for name in read_header(work.adapter / WEIGHTS_FILE)):
        return ""
    return (
        f"The base is stored as {stored}, and this adapter targets its text model, {text}. peft applies it to a "
        f"base loaded with AutoModelForCausalLM, but not to {stored}. Servers that load the whole model, such as "
        "vLLM, may ignore it silently: compare an answer with the base's, or export the merged model."
    )


def verdict(own: Spoken, other: Spoken, *, exact: bool) -> tuple[str, bool]:
    """The outcome of a verification. Raises `StudioError` if the result had to be the same and is not.

    `exact` says that both compute in the same precision; otherwise rounding may change scores and, at near-ties,
    answers.
    """
    if own.prompt != other.prompt:
        raise StudioError(
            "The export does not reproduce the prompt of the training: its tokens differ.",
            "This is a bug in LoRA Studio. Please report it.",
        )
    difference = own.difference(other)
    if exact and difference > EXACT:
        raise StudioError(
            f"The export does not reproduce base and adapter: logits differ by {difference:.3g}.",
            "This is a bug in LoRA Studio. Please report it.",
        )
    scores = f"logits at most {difference:.2g} apart" if difference else "identical logits"
    if own.text == other.text:
        return f"Tested: loaded, and the answer equals that of base and adapter, {scores}.", True
    return f"Tested: loaded, and the answer differs from that of base and adapter only by rounding, {scores}.", False
