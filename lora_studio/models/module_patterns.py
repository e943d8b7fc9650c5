"""Regular expressions for module names, matched in a process with a time limit.

Users and adapters supply them. The engine is Python's `re`, as in peft, so both match the same modules; a match blocks
its whole process, so none ever runs in a process with other work.
"""

import functools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

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
