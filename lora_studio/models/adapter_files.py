"""The files of an adapter: names, kinds that can be used, reads checked by a schema, and patterns of module names.

An adapter may come from anywhere. What passes has the types that peft and the studio expect; everything else raises
`StudioError`. A regular expression is matched by Python's `re`, as in peft, in a process with a time limit. No torch.
"""

import functools
import json
import math
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_studio.config.fields import plain_words
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

# Loading a pickle runs what is in it, and who only uses an adapter needs none of these.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SETTINGS_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "studio.json"
TEMPLATE_FILE, TOKENIZER_SETTINGS = "chat_template.jinja", "tokenizer_config.json"
VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
)
ADAPTER_FILES = (
    *(SETTINGS_FILE, WEIGHTS_FILE, CARD_FILE, TEMPLATE_FILE, TOKENIZER_SETTINGS, *VOCABULARIES),
    *("special_tokens_map.json", "added_tokens.json", "merges.txt"),
)
"""Files of an adapter's folder that are the adapter: no pickle, which runs when read, and nothing of the training."""
SMALL_FILES = (TOKENIZER_SETTINGS, "special_tokens_map.json", "added_tokens.json", "generation_config.json")
"""JSON files beside an adapter that are read when it answers."""
MAX_SETTINGS_BYTES, MAX_SMALL_BYTES, MAX_DEPTH = 8_000_000, 4_000_000, 32
Rank = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Names = list[str] | str | None
AGAIN = "Copy the adapter's files again, or save it again with peft."


class _Checked(BaseModel):
    """Known names with their types, and whatever else a newer library wrote."""

    model_config = ConfigDict(extra="allow", strict=True)


class AdapterSettings(_Checked):
    """`adapter_config.json` as peft 0.21 writes it, for every kind that can answer here."""

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    r: Annotated[int, Field(ge=0, le=65_536)] | None = None  # 0 is OFT's, whose blocks have sizes instead
    init_r: Rank | None = None
    target_r: Rank | None = None
    lora_alpha: float | int | None = None
    alpha: float | int | None = None
    lora_dropout: float | int | None = None
    bias: Literal["none", "all", "lora_only"] | None = None
    use_dora: bool | None = None
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | str | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    feedforward_modules: Names = None
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[Count] | Count | None = None
    layers_pattern: Names = None
    rank_pattern: dict[str, Rank | list[bool]] | None = None
    alpha_pattern: dict[str, float | int] | None = None
    trainable_token_indices: list[Count] | dict[str, list[Count]] | None = None
    num_virtual_tokens: Count | None = None
    token_dim: Count | None = None
    num_layers: Count | None = None
    num_attention_heads: Count | None = None
    encoder_hidden_size: Count | None = None
    layer_replication: list[Any] | None = None
    megatron_config: None = None
    """Names a module of Python that peft would import."""


class MixedAdapter(_Checked):
    """An adapter in a mix, with its weight; `run` is the id of its run, `sha256` the digest of its weights file."""

    name: str
    weight: float | int
    run: str = ""
    sha256: str = ""


class MixRecipe(_Checked):
    """What an adapter was mixed from: `method` and its settings are those of peft's `add_weighted_adapter`.

    `density` and `seed` are None for methods that do not use them.
    """

    adapters: list[MixedAdapter]
    method: str
    density: float | int | None = None
    seed: int | None = None


class StudioCard(_Checked):
    """`studio.json`, which the studio writes beside an adapter."""

    base_model: str | None = None
    revision: str | None = None
    quantization: Literal["none", "4bit", "8bit"] | None = None
    dtype: str | None = None
    system_prompt: str | None = None
    prompt_style: str | None = None
    enable_thinking: bool | None = None
    base_fingerprint: str | None = None
    max_length: Count | None = None
    four_bit: JsonObject | None = None
    mixed_from: MixRecipe | None = None


def read_object(path: Path, most: int = MAX_SMALL_BYTES) -> JsonObject:
    """A JSON object out of a file that may come from anywhere. Raises `StudioError` for everything else."""
    name = path.name
    try:
        size = path.stat().st_size
        if size > most:
            raise StudioError(f"{name} has {size:,} bytes; the limit for this file is {most:,}.", AGAIN)
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise StudioError(f"{name} cannot be read: {error.strerror}.", AGAIN) from None
    except UnicodeDecodeError:
        raise StudioError(f"{name} is not UTF-8.", AGAIN) from None
    except RecursionError:
        raise StudioError(f"{name} is nested too deeply.", AGAIN) from None
    except ValueError as error:
        raise StudioError(f"{name} cannot be read: {error}", "It must be a JSON file.") from None
    if not isinstance(content, dict):
        raise StudioError(f"{name} contains no settings.", "It must be a JSON object.")
    _check_values(content, name)
    return content


def _refuse(word: str) -> None:
    raise ValueError(f"it contains {word}, which is not a number.")


def _check_values(content: JsonObject, name: str) -> None:
    """No nesting that a library would fail at, no number without end, no half of a character."""
    waiting: list[tuple[Any, int]] = [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise StudioError(f"{name} is nested too deeply.", AGAIN)
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise StudioError(f"{name} contains half of a surrogate pair.", AGAIN) from None
        elif isinstance(value, float) and not math.isfinite(value):
            raise StudioError(f"{name} contains a number that is too large.", AGAIN)


def read_adapter_settings(path: Path) -> JsonObject:
    """An `adapter_config.json` whose every known setting has its type, and whose expressions end in time."""
    settings = read_object(path, MAX_SETTINGS_BYTES)
    _check(AdapterSettings, settings, path.name)
    check_settings(settings)
    return settings


def read_studio_card(folder: Path) -> JsonObject:
    """The `studio.json` of an adapter's folder; empty where there is none."""
    path = folder / CARD_FILE
    if not path.is_file():
        return {}
    card = read_object(path)
    _check(StudioCard, card, path.name)
    return card


def brings_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's vocabulary, or at least its settings, stand beside the adapter's weights."""
    return (folder / TOKENIZER_SETTINGS).is_file() or any((folder / name).is_file() for name in VOCABULARIES)


def read_template(folder: Path) -> str:
    """The chat template beside an adapter's weights, where transformers looks for it: a file of its own, else in the
    tokenizer's settings, where several may stand by name; "" where there is none.
    """
    path = folder / TEMPLATE_FILE
    if not path.is_file():
        return _template_in_settings(folder / TOKENIZER_SETTINGS)
    try:
        if path.stat().st_size > MAX_SMALL_BYTES:
            raise StudioError(f"{path.name} is larger than {MAX_SMALL_BYTES:,} bytes, the limit for a template.", AGAIN)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudioError(f"{path.name} cannot be read: {error.strerror}.", AGAIN) from None
    except UnicodeDecodeError:
        raise StudioError(f"{path.name} is not UTF-8.", "Save it as UTF-8 and zip the adapter again.") from None


def _template_in_settings(path: Path) -> str:
    """The chat template in a tokenizer_config.json; of several the one called default."""
    template = read_object(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None and not isinstance(template, str):
        raise StudioError(f"The chat template in {path.name} is not text.", AGAIN)
    return template or ""


def check_small_files(folder: Path) -> None:
    """Raises `StudioError` where a file that an answer will need can't be read."""
    read_studio_card(folder)
    read_template(folder)
    for name in SMALL_FILES:
        if (folder / name).is_file():
            read_object(folder / name)


def _check(schema: type[_Checked], content: JsonObject, name: str) -> None:
    """Raises `StudioError` with everything that has a wrong type."""
    try:
        schema.model_validate(content)
    except ValidationError as error:
        wrong: dict[str, str] = {}
        for item in error.errors(include_url=False):
            key = ".".join(str(part) for part in item["loc"][:1])
            text = repr(content.get(key))
            excerpt = "it is missing" if key not in content else f"found {text[:80]}{'…' if len(text) > 80 else ''}"
            wrong.setdefault(key, f"{key} {plain_words(item)} ({excerpt})")
        raise StudioError(f"{name} is not a valid peft config: {'; '.join(list(wrong.values())[:5])}.", AGAIN) from None


def carried(folder: Path) -> list[Path]:
    """The files of an adapter's folder that go with it."""
    return [folder / name for name in ADAPTER_FILES if (folder / name).is_file() and not (folder / name).is_symlink()]


LORA = "LORA"
KINDS = {
    LORA: "LoRA",
    "ADALORA": "AdaLoRA",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "VERA": "VeRA",
    "OFT": "OFT",
    "IA3": "(IA)³",
    "LN_TUNING": "layer norm tuning",
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "P-tuning",
    "PREFIX_TUNING": "prefix tuning",
}
"""Kinds of adapters that can answer, by peft's word for them. None of them reads another file or fetches anything."""
PROMPT_LEARNING = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
NEED_FULL_BASE = ("LOHA", "LOKR")
"""Kinds that peft can't put on a base in 4 or 8 bits."""
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""First weights (`init_lora_weights`) whose loading takes something out of the base itself."""
WRITE_TEXT = ("CAUSAL_LM", "SEQ_2_SEQ_LM", None)
"""Task types of adapters that write text; some tools mark those of multimodal bases as SEQ_2_SEQ_LM."""


def read_settings(folder: Path) -> JsonObject:
    """The adapter's `adapter_config.json`.

    Raises `StudioError` unless it is of a known kind, in safetensors, which run no code, and leaves its base alone.
    """
    if not (folder / SETTINGS_FILE).is_file():
        raise StudioError(f"There is no adapter in {folder}.", "Choose a finished run or a checkpoint.")
    if not (folder / WEIGHTS_FILE).is_file():
        raise StudioError(
            f"The adapter in {folder} is not stored as safetensors.",
            "Other formats can run code when loaded. Convert it to safetensors.",
        )
    settings = read_adapter_settings(folder / SETTINGS_FILE)
    _check_usable(folder, settings)
    return settings


def _check_usable(folder: Path, settings: JsonObject) -> None:
    """Raises `StudioError` unless the adapter is of a known kind, writes text and leaves its base alone."""
    kind, start, task = settings["peft_type"], str(settings.get("init_lora_weights")), settings.get("task_type")
    if kind not in KINDS:
        raise StudioError(
            f"The adapter in {folder} has the unsupported type {kind[:60]}.",
            f"Supported are {', '.join(KINDS.values())}.",
        )
    if task not in WRITE_TEXT:
        raise StudioError(
            f"This adapter was trained for {str(task)[:60]}, not for text generation.",
            "Only CAUSAL_LM adapters can be used for chat.",
        )
    if kind in PROMPT_LEARNING and not settings.get("num_virtual_tokens"):
        raise StudioError(f"The adapter in {folder} does not record its number of virtual tokens.", "Save it again.")
    if start.startswith(CHANGE_THE_BASE):
        raise StudioError(
            f"The adapter in {folder} uses the initialization {start[:60]}, which changes the base when loaded.",
            "Save it with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA adapter.",
        )
    if settings.get("layer_replication"):
        raise StudioError(
            f"The adapter in {folder} duplicates layers of its base (layer_replication), which changes the base model.",
            "It cannot share the base with other adapters. Use it with peft alone.",
        )


def virtual_tokens(folder: Path) -> int:
    """Tokens that an adapter of prompt learning puts before each prompt; 0 for all others."""
    settings = read_settings(folder)
    return int(settings["num_virtual_tokens"]) if settings["peft_type"] in PROMPT_LEARNING else 0


def read_lora(folder: Path) -> JsonObject:
    """The same for what only LoRA can be used for. Raises `StudioError` for all other kinds."""
    settings = read_settings(folder)
    if settings["peft_type"] != LORA:
        raise StudioError(
            f"The adapter in {folder} is {KINDS[settings['peft_type']]}, not LoRA.",
            "It can be used for chat and evaluation. Only LoRA adapters can be trained further or exported.",
        )
    return settings


WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch.compile, FSDP and activation checkpointing put anywhere into a name."""
LEADING = frozenset({"base_model", "model", "module", "language_model", "text_model", "transformer"})
"""Names that only hold a text model, at the start of a path."""
_OF_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(?:\..+)?")


def plain_name(name: str) -> str:
    """A weight's or module's name without what only wraps the model, and without the adapter's own name."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in LEADING:
        parts.pop(0)
    remaining: list[str] = []
    for at, part in enumerate(parts):
        adapter_name = at and parts[at - 1].startswith("lora_") and part not in ("weight", "bias")
        if not adapter_name:  # peft's `lora_A.default.weight`
            remaining.append(part)
    return ".".join(remaining)


def lora_place(name: str) -> tuple[str, str] | None:
    """The module that a LoRA matrix is of, as the file names it, and which matrix it is; None for other weights."""
    match = _OF_LORA.fullmatch(name)
    return (match["module"], match["part"]) if match else None


def renamed(names: Iterable[str], targets: Iterable[str]) -> dict[str, str]:
    """The known name of each of these names that has one: the very same, else the only one that is plainly the same."""
    target_names = list(targets)
    exact, often = frozenset(target_names), Counter(map(plain_name, target_names))
    plain = {plain_name(name): name for name in target_names if often[plain_name(name)] == 1}
    matches = {name: name if name in exact else plain.get(plain_name(name), "") for name in names}
    return {name: place for name, place in matches.items() if place}


def first_names(names: Iterable[str], most: int = 3) -> str:
    """The first names of many, in words."""
    listed = list(names)
    remaining = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {remaining:,} more" if remaining > 0 else "")


def ranks_held(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The rank of each module's LoRA matrices in a file, by the module's name there."""
    ranks: dict[str, int] = {}
    for name, shape in shapes.items():
        place = lora_place(name)
        if place and place[1] in ("A", "embedding_A") and shape:
            ranks[place[0]] = int(shape[0])
    return ranks


_EXTRAS = {
    "use_dora": "DoRA's magnitudes",
    "modules_to_save": "modules trained in full",
    "lora_bias": "its own biases (lora_bias)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "target_parameters": "matrices on stacked experts (target_parameters)",
    "alora_invocation_tokens": "an invocation (aLoRA)",
    "arrow_config": "a router over adapters (Arrow)",
    "use_qalora": "pooled inputs (QA-LoRA)",
    "use_bdlora": "block-diagonal matrices (BD-LoRA)",
}
"""Settings of an adapter that add something to the pairs, by what a person calls it."""
_CANNOT_MERGE = {"alora_invocation_tokens": "aLoRA", "arrow_config": "Arrow", "use_qalora": "QA-LoRA"}
"""Settings whose effect depends on the text: no weights of the base have it."""
_MODULE = re.compile(r"base_model\.model\.(?P<module>.+?)\.(?:lora_|weight$|bias$|token_adapter|trainable_tokens)")
_TARGETS = re.compile(r"model\.layers\.\d+\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))_proj")


def extras(settings: Mapping[str, Any]) -> list[str]:
    """What an adapter with these settings holds beyond pairs of matrices, in words."""
    features = [words for name, words in _EXTRAS.items() if settings.get(name)]
    return features + (["trained biases"] if settings.get("bias", "none") != "none" else [])


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for --max-lora-rank (vllm/config/lora.py)."""


def max_rank(settings: Mapping[str, Any]) -> int:
    """vLLM's smallest --max-lora-rank for the adapter. Raises `StudioError` for adapters that vLLM cannot serve."""
    merged = "Export the merged model instead: vLLM serves it like any other model."
    lacking = extras({**settings, "target_parameters": None})
    if lacking:
        raise StudioError(f"vLLM does not support adapters with {' and '.join(lacking)}.", merged)
    rank = max([int(settings["r"]), *map(int, (settings.get("rank_pattern") or {}).values())])
    fitting = [allowed for allowed in VLLM_RANKS if allowed >= rank]
    if not fitting:
        raise StudioError(f"vLLM supports ranks up to {VLLM_RANKS[-1]}; this adapter has rank {rank}.", merged)
    return fitting[0]


def scale(settings: Mapping[str, Any], pattern: str = "") -> float:
    """What B A is multiplied by: alpha / r, or alpha / sqrt(r) (rsLoRA), for modules of a pattern or for all others."""
    rank = (settings.get("rank_pattern") or {}).get(pattern, settings["r"])
    alpha = (settings.get("alpha_pattern") or {}).get(pattern, settings["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else float(rank))


def scales_differ(settings: Mapping[str, Any]) -> bool:
    """Whether some modules have another scale than the rest."""
    patterns = {*(settings.get("rank_pattern") or {}), *(settings.get("alpha_pattern") or {})}
    return any(not math.isclose(scale(settings, pattern), scale(settings)) for pattern in patterns)


def other_modules(tensors: Iterable[str]) -> list[str]:
    """Modules that an adapter of these tensors is on, beside the projections of attention and of a plain MLP."""
    modules = (match["module"] for name in tensors if (match := _MODULE.match(name)))
    return sorted({module.rpartition(".")[2] for module in modules if not _TARGETS.fullmatch(module)})


def cannot_merge(settings: Mapping[str, Any]) -> list[str]:
    """Kinds of LoRA that no weights can hold."""
    return [words for name, words in _CANNOT_MERGE.items() if settings.get(name)]


MAX_CHARACTERS = 4000  # of an expression; unsloth's longest for multimodal models have 500
CPU_SECONDS = 0.5
WALL_SECONDS = 20.0  # for a machine so busy that a process hardly runs
MEMORY_BYTES = 1 << 29
PROBES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.31.mlp.down_proj",
    "model.language_model.layers.10.mlp.experts.gate_up_proj",
    "model.vision_tower.encoder.layers.23.self_attn.out_proj",
    "transformer.h.11.attn.c_attn",
    "model.embed_tokens",
    "lm_head",
)
"""Names of the known families' modules: what explodes on one of them is refused before a model is known."""
_SIGNS = re.compile(r"[\\^$*+?()\[\]{}|]")
_PROGRAM = """
import json, re, resource, signal, sys
signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
asked = json.load(sys.stdin)
try:
    expressions = [re.compile(one) for one in asked["expressions"]]
except (re.error, OverflowError, RecursionError) as error:
    answer = {"wrong": str(error) or type(error).__name__}
else:
    names = asked["names"]
    answer = {"found": [[at for at, name in enumerate(names) if one.fullmatch(name)] for one in expressions]}
json.dump(answer, sys.stdout)
"""


class PatternError(StudioError):
    """An expression that is none, or that takes too long."""


def is_regular_expression(target: str) -> bool:
    """Whether a `lora.target_modules` is a pattern for whole module paths: names hold no sign that a pattern needs."""
    return _SIGNS.search(target) is not None


def matching(expression: str, names: Sequence[str]) -> list[str]:
    """Those of the names that the expression matches as a whole. Raises `PatternError`."""
    (indices,) = _run((expression,), tuple(names))
    return [names[at] for at in indices]


def check(expressions: Sequence[str], names: Sequence[str] = PROBES) -> None:
    """Raises `PatternError` unless all expressions are sound and can be matched with these names in time."""
    if expressions:
        _run(tuple(expressions), tuple(names))


def check_settings(settings: Mapping[str, Any], names: Sequence[str] = PROBES) -> None:
    """The same for whatever peft takes for an expression in an adapter's settings (`adapter_config.json`).

    Names in its lists become parts of expressions: those that are more than a name are refused.
    """
    check(_expressions(settings), names)
    for key in ("target_modules", "modules_to_save", "exclude_modules", "target_parameters", "feedforward_modules"):
        value = settings.get(key)
        for name in value if isinstance(value, list | tuple | set) else ():
            if is_regular_expression(str(name)):
                raise PatternError(
                    f"{key} in the adapter's config lists {str(name)[:80]!r}, which is not a module name.",
                    "Lists contain names. A regular expression must not be in a list.",
                )


def _expressions(settings: Mapping[str, Any]) -> list[str]:
    """The expressions in an adapter's settings, put together as peft does (0.21: tuners_utils.py, utils/other.py)."""
    alone = [settings.get(key) for key in ("target_modules", "exclude_modules", "feedforward_modules")]
    expressions = [pattern for pattern in alone if isinstance(pattern, str) and pattern != "all-linear"]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(key)
        expressions += [rf"(.*\.)?({pattern})" for pattern in patterns] if isinstance(patterns, Mapping) else []
    layers = settings.get("layers_pattern") or []
    expressions += [
        rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\..*" for pattern in ([layers] if isinstance(layers, str) else layers)
    ]
    return expressions


def _run(expressions: tuple[str, ...], names: tuple[str, ...]) -> list[list[int]]:
    for text in expressions:
        if len(text) > MAX_CHARACTERS:
            raise PatternError(
                f"A regular expression for module names has {len(text):,} characters; the limit is {MAX_CHARACTERS:,}.",
                "Name the modules' last parts instead, such as q_proj, v_proj.",
            )
    excerpt = " or ".join(
        f"{expression[:120]}…" if len(expression) > 120 else expression for expression in expressions[:3]
    )
    answer = _answer(expressions, names)
    if answer is None:
        raise PatternError(
            f"The regular expression {excerpt} takes too long to match module names: it was stopped after "
            f"{CPU_SECONDS:g} s.",
            "Avoid nested repeats such as (a|b*)*. Write .*\\.(q_proj|v_proj), or only the names.",
        )
    if "wrong" in answer:
        raise PatternError(
            f"{excerpt} is not a valid regular expression: {answer['wrong']}.", "For names, write q_proj, v_proj."
        )
    return [list(indices) for indices in answer["found"]]


@functools.lru_cache(maxsize=256)
def _answer(expressions: tuple[str, ...], names: tuple[str, ...]) -> JsonObject | None:
    """What the process says; None where its time was over. The form asks the same again with every key pressed."""
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(CPU_SECONDS), str(MEMORY_BYTES)]
    request = json.dumps({"expressions": expressions, "names": names})
    try:
        ended = subprocess.run(command, input=request, capture_output=True, text=True, timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    if ended.returncode in (-signal.SIGPROF, -signal.SIGKILL):
        return None
    if ended.returncode:
        return {"wrong": ended.stderr.strip().rpartition("\n")[2] or f"its check ended with {ended.returncode}"}
    answer: JsonObject = json.loads(ended.stdout)
    return answer
