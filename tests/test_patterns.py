"""Every regular expression of the package takes time in proportion to the text, for the texts are people's."""

import ast
import importlib
import re
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from tests.cpu_time import slowness
from tests.source import MODULES, PACKAGE, named_calls, nodes_of

MATCHERS = ("compile", "search", "match", "fullmatch", "finditer", "findall", "split", "sub", "subn")
SIZES = {
    22: 0.02,
    200: 0.02,
    2_000: 0.1,
    16_000: 0.5,
    100_000: 1.0,
}  # letters of a text, and the seconds that they may take
QUICK = 0.0005  # seconds: where 2,000 letters take less, 100,000 take about a second at most, were they squared
# Expressions that are built while the program runs: of each module one as it may come out, with names of the module.
BUILT = {
    "data/quality.py": r"'<\|im_end\|>|<s>|</s>'",
    "data/render.py": r"'<\|im_end\|>|<s>|</s>|<think>'",
    "data/readers/tables.py": "_SPACED_MARK.replace('D', ',')",
    "data/word_cutting.py": "in_python(GPT2_PATTERN)",  # a pattern of a tokenizer that repeats groups is refused
    "models/adapter_files.py": "'a'",  # people's own, matched in a process that is ended
}
LONGEST = (" ", "\n", '"', "[", "a", "0", "[ ", "a\n")
UNITS = (
    *(" ", "\n", "\t", "a", "A", "0", "_", "-", ".", ",", "#", "`", '"', "'", "\\", "/", ":", "|", "*", "%", "~", "$"),
    *("(", ")", "[", "]", "{", "}", "<", ">", "\x1b[", "\u200b", "é", "字"),
    *("a ", "a\n", " \n", "\r\n", "- ", "a.", "a,", "1,", "0.", "a_", "a/", '"\\', "[ ", "{{", "{{ ", "}}{{", "{% "),
    *("### ", "###\n", "### human", "human ", "human:", "human\t", "**user**", "\nuser ", "<|im_start|>", "<|user|>"),
    *(
        "<|start_header_id|>",
        "<start_of_turn>",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<s>",
        "</s>",
        "<think>",
        "```",
        "```\n",
    ),
    *("#### ", "####a", "<img>", "<img>a", "&#96;", "hf_", "http://", "layers.", "tried to allocate "),
)


BEGINNINGS = ("```", "###", "1", ".", "### human", "[INST]", "{{", "`", "a", "user", "<think>", "####", '"')


def _makers() -> Iterator[Callable[[int], str]]:
    """Texts of any size: one unit again and again, whole, not quite, and after what an expression may begin with."""
    for unit in UNITS:
        yield lambda size, unit=unit: unit * (size // len(unit))
        yield lambda size, unit=unit: f"{unit * (size // len(unit))}!"
    for before, unit in product(BEGINNINGS, (" ", "\n", "a", ",", ".")):
        yield lambda size, before=before, unit=unit: f"{before}{unit * size}!"


def _written() -> dict[tuple[str, int, int], re.Pattern[Any]]:
    """Every expression that the package's source writes out, by module and line."""
    found: dict[tuple[str, int, int], re.Pattern[Any]] = {}
    for path in MODULES:
        name = path.relative_to(PACKAGE).as_posix()
        for node in nodes_of(path):
            if isinstance(node, ast.Call) and _is_of_re(node.func):
                found[name, node.lineno, node.col_offset] = _pattern_of(node, name)
    return found


def _is_of_re(called: ast.expr) -> bool:
    """Whether what is called is written as `re.compile` or another function of `re` that takes an expression."""
    module = called.value if isinstance(called, ast.Attribute) and called.attr in MATCHERS else None
    return isinstance(module, ast.Name) and module.id == "re"


def _pattern_of(call: ast.Call, module: str) -> re.Pattern[Any]:
    flags = next((word.value for word in call.keywords if word.arg == "flags"), None)
    if ast.unparse(call.func) == "re.compile" and len(call.args) > 1:
        flags = call.args[1]
    whole = eval(ast.unparse(flags), {"re": re}) if flags is not None else 0
    if isinstance(call.args[0], ast.Constant):
        return re.compile(call.args[0].value, whole)
    names = vars(importlib.import_module(f"lora_studio.{module.removesuffix('.py').replace('/', '.')}"))
    try:
        pattern = eval(ast.unparse(call.args[0]), dict(names))
    except NameError:  # built of what a function is given
        pattern = eval(BUILT[module], dict(names))
    return re.compile(pattern, whole)


WRITTEN = _written()


def _ways() -> dict[tuple[str, int, int], set[str]]:
    """How each expression is used: by the call that writes it, or by those on the name that it is given."""
    used: dict[str, set[str]] = {}
    for name, _ in named_calls():
        owner, _, way = name.rpartition(".")
        used.setdefault(owner.rpartition(".")[2], set()).add(way)
    ways: dict[tuple[str, int, int], set[str]] = {}
    for path in MODULES:
        name = path.relative_to(PACKAGE).as_posix()
        for node in nodes_of(path):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Call)
                and isinstance(node.targets[0], ast.Name)
            ):
                ways[name, node.value.lineno, node.value.col_offset] = used.get(node.targets[0].id, set())
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MATCHERS:
                ways.setdefault((name, node.lineno, node.col_offset), {node.func.attr})
    return {place: ways.get(place, set()) & set(MATCHERS) - {"compile"} or {"finditer"} for place in WRITTEN}


WAYS = _ways()


def test_every_expression_of_the_package_is_looked_at():
    modules = {module for module, _, _ in WRITTEN}
    assert modules >= {"data/dialogues.py", "data/readers/tables.py", "engine/evaluate/tasks.py", "ui/html.py", *BUILT}
    assert len(WRITTEN) == sum(name in {f"re.{one}" for one in MATCHERS} for name, _ in named_calls())


@pytest.mark.slow
@pytest.mark.parametrize("slow", [r"(a+)+!", r"\s*x\s*:", r"(?:^|\s*)###"])
def test_an_expression_that_takes_longer_and_longer_is_found(slow):
    assert _slow_text(re.compile(slow, re.DOTALL), {"finditer"})


def _seconds(pattern: re.Pattern[Any], text: str, ways: set[str]) -> float:
    subject = text.encode() if isinstance(pattern.pattern, bytes) else text
    began = time.process_time()
    for way in ways & {"match", "fullmatch"}:
        getattr(pattern, way)(subject)
    if ways - {"match", "fullmatch"}:
        for _ in pattern.finditer(subject):
            pass
    seconds = time.process_time() - began
    return seconds / slowness() if seconds > min(SIZES.values()) else seconds  # the loop costs more than most patterns


def _slow_text(pattern: re.Pattern[Any], ways: set[str]) -> str | None:
    """The beginning of a text that takes an expression too long; small ones come first, for large ones may never end.

    Where eight times the letters take less than sixteen times as long, more letters are not tried.
    """
    for make in _makers():
        before = 0.0  # seconds a letter
        for size, most in SIZES.items():
            seconds = _seconds(pattern, make(size), ways)
            if seconds > most:
                return f"{make(20)!r}: {size} letters take {seconds:.2f} s"
            if size > 1000 and (seconds < QUICK or seconds < 2 * before * size):
                break
            before = seconds / size if size > 1000 else 0.0
    longest = max(SIZES)
    slow = [unit for unit in LONGEST if _seconds(pattern, unit * (longest // len(unit)), ways) > SIZES[longest]]
    return f"{longest} of {slow}" if slow else None


@pytest.mark.parametrize("place", WRITTEN, ids=lambda place: f"{place[0]}:{place[1]}")
def test_an_expression_takes_time_in_proportion_to_the_text(place):
    assert _slow_text(WRITTEN[place], WAYS[place]) is None
