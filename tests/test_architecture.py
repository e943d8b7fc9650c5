"""The shape of the code: which packages may import which, how long a module may be, what every module begins with."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source import MODULES, PACKAGE, ROOT, modules_with, nodes_of, tree_of

TOP = "top"  # the modules directly in the package
DOMAIN = ("config", "models", "data", "jobs", "runs", "evaluate", "export", "chat", "access", "api")
PACKAGES: dict[str, set[str]] = {
    TOP: {TOP},
    "config": {TOP, "config", "models"},
    "models": {TOP, "config", "models"},
    **{name: {TOP, *DOMAIN[: at + 1]} for at, name in enumerate(DOMAIN) if at > 1},
    "engine": {TOP, *DOMAIN[:-2], "engine"},
    "ui": {TOP, *DOMAIN, "ui"},
    "cli": {TOP, *DOMAIN, "ui", "cli"},
    "demo": {TOP, *DOMAIN, "engine", "demo"},
}
"""Each package with those that it may import. The order of `DOMAIN` is that of the house, from the ground up."""
HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate"}
VAGUE = {"utils", "util", "common", "helpers", "misc", "core", "base", "shared"}
MAX_MODULE_LINES, MIN_MODULE_LINES, MAX_FUNCTION_LINES, MAX_IMPORTS = 600, 40, 60, 15
ENTRIES = {"__init__.py", "__main__.py", "errors.py"}
WIDE: dict[str, int] = {}
"""Modules that import more than `MAX_IMPORTS` others, with how many. The numbers may only become smaller."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The package of a dotted name inside `lora_studio`."""
    parts = module.split(".")
    if module == "lora_studio.__main__":
        return "cli"
    return parts[1] if len(parts) > 1 and parts[1] in PACKAGES else TOP


def imports(path: Path, *, everywhere: bool) -> Iterator[tuple[str, int]]:
    """Dotted names imported, with line numbers; `everywhere` includes those inside functions."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in nodes_of(path) if everywhere else _at_import_time(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module or "") if part)
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield (inner if inner in KNOWN else module), node.lineno


def _at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not types_only and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from _at_import_time(node)


KNOWN = {name_of(path) for path in MODULES}


def test_the_package_has_modules_to_look_at() -> None:
    assert len(MODULES) > 20


def test_a_module_imports_only_packages_that_it_may() -> None:
    upward = {
        f"{name_of(path)} -> {module}"
        for path in MODULES
        for module, _ in imports(path, everywhere=True)
        if module in KNOWN and package_of(module) not in PACKAGES[package_of(name_of(path))]
    }
    assert not upward


COPIED = ("lora_studio.engine.space_app",)
"""Programs that an export copies: nothing here imports them."""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_stays_in_the_engine_and_gradio_in_the_page(path: Path) -> None:
    package = package_of(name_of(path))
    # models and data may import the trainer's libraries inside a function, in a child process
    everywhere = package not in ("models", "data", "engine")
    tops = {module.split(".")[0] for module, _ in imports(path, everywhere=everywhere)}
    assert package in ("engine", "demo") or not tops & HEAVY
    assert (
        package in ("ui", "api")
        or name_of(path) in COPIED
        or "gradio" not in {module.split(".")[0] for module, _ in imports(path, everywhere=True)}
    )


@pytest.mark.parametrize(
    ("program", "later"),
    [
        ("lora_studio.engine.chat.session", HEAVY),
        ("lora_studio.engine.train.worker", HEAVY),
        ("lora_studio.engine.models.source", {"peft", "trl", "datasets"}),
        ("lora_studio.engine.models.multi_adapter", {"trl", "datasets"}),
    ],
)
def test_a_program_waits_for_no_library_that_it_does_not_need(program: str, later: set[str]) -> None:
    paths = {name_of(path): path for path in MODULES}
    seen, waiting, libraries = {program}, [program], set[str]()
    while waiting:
        imported = {module for module, _ in imports(paths[waiting.pop()], everywhere=False)}
        libraries |= {module.split(".")[0] for module in imported - KNOWN}
        new = (imported & KNOWN) - seen
        seen |= new
        waiting += new
    assert len(seen) > 3
    assert not libraries & later


GPUS = re.compile(r"\btorch\.(cuda|xpu|mps|version|backends\.(cuda|mps|cudnn))\b|get_device_module")
KIND_WORDS = re.compile(r"[=!]= ['\"](cuda|rocm|xpu|mps)['\"]")
KNOWS_GPUS = {"lora_studio.engine.accelerator"}


def test_only_the_accelerator_names_a_kind_of_gpu_of_torch() -> None:
    calls = {
        name_of(path)
        for path in modules_with("torch", "get_device_module")
        for node in nodes_of(path)
        if isinstance(node, ast.Attribute) and GPUS.search(ast.unparse(node))
    }
    assert calls - set(COPIED) == KNOWS_GPUS
    named = modules_with("cuda", "rocm", "xpu", "mps")
    compared = {name_of(path) for path in named if KIND_WORDS.search(ast.unparse(tree_of(path)))}
    assert not compared, "ask models.accelerators what a kind of device can do"


def test_tabs_do_not_import_each_other() -> None:
    tabs = [path for path in MODULES if path.name == "tab.py"]
    wrong = [
        f"{name_of(path)}: {module}"
        for path in MODULES
        if path.parent.parent == PACKAGE / "ui"
        for module, _ in imports(path, everywhere=True)
        if module.rpartition(".")[2] in ("tab", "handlers") and module.split(".")[2] != path.parent.name
    ]
    assert len(tabs) == 6
    assert not wrong


def test_no_folder_of_the_tests_is_a_link() -> None:
    folders = [path for path in (ROOT / "tests").iterdir() if path.is_dir()]
    assert len(folders) > 10
    assert not [path.name for path in folders if path.is_symlink()], "a link to itself is collected without end"


def test_few_modules_lie_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_AT_TOP


MAX_AT_TOP = 6


def test_a_package_says_what_lives_there_and_what_it_may_import() -> None:
    for path in MODULES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            docstring = ast.get_docstring(tree_of(path)) or ""
            assert "may import" in docstring.lower(), name_of(path)


def test_no_module_imports_more_than_fifteen_others() -> None:
    counts = {name_of(path): len({m for m, _ in imports(path, everywhere=True) if m in KNOWN}) for path in MODULES}
    assert {name: count for name, count in counts.items() if count > MAX_IMPORTS} == WIDE


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_for_and_is_neither_short_nor_long(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(tree_of(path)), "no docstring"
    assert source.count("\n") <= MAX_MODULE_LINES
    assert path.name in ENTRIES or source.count("\n") >= MIN_MODULE_LINES
    assert path.stem not in VAGUE


EVERYDAY = frozenset(
    [
        "found",
        "said",
        "told",
        "given",
        "wanted",
        "known",
        "kept",
        "one",
        "each",
        "made",
        "taken",
        "shown",
        "asked",
        "chosen",
        "there",
        "left",
        "came",
        "held",
        "meant",
        "what",
        "whose",
        "others",
        "rest",
        "apart",
        "beside",
        "seen",
        "named",
        "drawn",
    ]
)
"""Everyday words that say nothing of a value: a result, a message, arguments, a selection have names of their own."""
MAX_EVERYDAY_PER_1000 = 8.0
MAX_UNTYPED = 15
"""`dict[str, Any]` in the package. The number may only become smaller."""


def test_values_are_called_by_what_they_are() -> None:
    names = [
        node.id if isinstance(node, ast.Name) else node.arg
        for path in MODULES
        for node in nodes_of(path)
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    ]
    assert len(names) > 1000
    assert 1000 * sum(name in EVERYDAY for name in names) / len(names) <= MAX_EVERYDAY_PER_1000


def test_few_values_are_dictionaries_of_anything() -> None:
    assert sum(path.read_text(encoding="utf-8").count("dict[str, Any]") for path in MODULES) <= MAX_UNTYPED


def test_the_command_line_imports_the_page_only_inside_a_function() -> None:
    commands = [path for path in MODULES if package_of(name_of(path)) == "cli"]
    at_start = {module for path in commands for module, _ in imports(path, everywhere=False)}
    assert len(commands) > 5
    assert not any(module.startswith("lora_studio.ui") for module in at_start)


MAX_MODULES, MAX_SINGLE_IMPORTERS, MAX_REACHED = 234, 43, 26.4
"""Modules of the package, those that a single other imports, and how many a module reaches through imports on average.
The numbers may only become smaller."""


def _graph() -> dict[str, set[str]]:
    """Each module with those that it imports."""
    return {
        name_of(path): {module for module, _ in imports(path, everywhere=True) if module in KNOWN} - {name_of(path)}
        for path in MODULES
    }


def test_modules_are_few_and_reach_few_others() -> None:
    graph = _graph()
    importers = Counter(module for imported in graph.values() for module in imported)
    reached = 0
    for module in graph:
        seen, waiting = {module}, [module]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached += len(seen) - 1
    assert len(graph) <= MAX_MODULES
    assert sum(importers[module] == 1 for module in graph) <= MAX_SINGLE_IMPORTERS
    assert reached / len(graph) <= MAX_REACHED


def test_no_module_imports_itself_round_a_circle() -> None:
    graph = _graph()
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for below in graph[module]:
            visit(below, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_stay_short(path: Path) -> None:
    long = []
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            text = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
            if (node.end_lineno or 0) - node.lineno + 1 - text > MAX_FUNCTION_LINES:
                long.append(node.name)
    assert not long


def test_at_most_five_places_catch_everything() -> None:
    broad = [
        f"{path.name}:{node.lineno}"
        for path in MODULES
        for node in nodes_of(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not (len(node.body) and isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
    ]
    assert len(broad) <= 5, broad


@pytest.mark.slow
def test_the_process_behind_the_page_loads_no_torch() -> None:
    code = (
        "import sys, lora_studio.ui.app, lora_studio.cli, lora_studio.jobs.supervisor, lora_studio.data.dataset;"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'peft', 'trl'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
