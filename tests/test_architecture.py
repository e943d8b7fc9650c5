"""The shape of the code: who may import whom, how long a file may be, what every file begins with."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source import MODULES, PACKAGE, ROOT, nodes_of, tree_of

LAYERS = {
    "base": {"base"},
    "data": {"base", "data"},
    "engine": {"base", "data", "engine"},
    "jobs": {"base", "jobs"},
    "ui": {"base", "data", "jobs", "ui"},
    "cli": {"base", "data", "jobs", "ui", "cli"},
    "demo": {"base", "data", "engine", "demo"},
}
HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate"}
VAGUE = {"utils", "util", "common", "helpers", "misc", "core", "base", "shared"}
LONGEST_MODULE, LONGEST_FUNCTION = 600, 60


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """The layer of a dotted name inside the package."""
    parts = module.split(".")
    first = "cli" if parts[1:2] in (["__main__"], ["cli"]) else parts[1] if len(parts) > 1 else "base"
    return first if first in LAYERS else "base"


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
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from _at_import_time(node)


KNOWN = {name_of(path) for path in MODULES}


def test_the_package_has_modules_to_look_at() -> None:
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_layers_that_it_may(path: Path) -> None:
    layer = layer_of(name_of(path))
    wrong = [
        f"line {line}: {layer} imports {module}"
        for module, line in imports(path, everywhere=True)
        if module.split(".")[0] == "lora_studio" and layer_of(module) not in LAYERS[layer]
    ]
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_stays_in_the_engine_and_gradio_in_the_page(path: Path) -> None:
    layer = layer_of(name_of(path))
    everywhere = layer in ("base", "jobs", "ui", "cli")  # data may import the trainer's libraries inside a function
    tops = {module.split(".")[0] for module, _ in imports(path, everywhere=everywhere)}
    assert layer in ("engine", "demo") or not tops & HEAVY
    assert layer == "ui" or "gradio" not in {module.split(".")[0] for module, _ in imports(path, everywhere=True)}


def test_tabs_do_not_import_each_other() -> None:
    tabs = [path for path in MODULES if path.stem.endswith("_tab")]
    wrong = [
        f"{path.name}: {module}"
        for path in tabs
        for module, _ in imports(path, everywhere=True)
        if module.startswith("lora_studio.ui.") and module.endswith("_tab")
    ]
    assert tabs
    assert not wrong


def test_the_command_line_imports_the_page_only_inside_a_function() -> None:
    commands = [path for path in MODULES if layer_of(name_of(path)) == "cli"]
    at_start = {module for path in commands for module, _ in imports(path, everywhere=False)}
    assert len(commands) > 5
    assert not any(module.startswith("lora_studio.ui") for module in at_start)


def test_no_module_imports_itself_round_a_circle() -> None:
    graph = {
        name_of(path): {module for module, _ in imports(path, everywhere=False) if module in KNOWN} for path in MODULES
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for below in graph[module] - {module}:
            visit(below, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_for_and_stays_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(tree_of(path)), "no docstring"
    assert source.count("\n") <= LONGEST_MODULE
    assert path.stem not in VAGUE


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_stay_short(path: Path) -> None:
    program = PACKAGE / "engine" / "train.py"
    long = []
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and path != program:
            first = node.body[0]
            text = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
            if (node.end_lineno or 0) - node.lineno + 1 - text > LONGEST_FUNCTION:
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
        "import sys, lora_studio.ui.build, lora_studio.cli, lora_studio.jobs.supervisor, lora_studio.data.dataset;"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'peft', 'trl'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
