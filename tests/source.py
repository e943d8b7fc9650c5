"""The package's own code, read once for all tests that look into it."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lora_studio"
MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


def modules_with(*words: str) -> list[Path]:
    """The modules whose source holds one of the words: to look at a few trees and not at all."""
    return [path for path in MODULES if any(word in text_of(path) for word in words)]


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a module, those inside functions included."""
    return tuple(ast.walk(tree_of(path)))


@cache
def named_calls() -> list[tuple[str, ast.Call]]:
    """Every call in the package, with the name that is called as it is written."""
    found = (node for path in MODULES for node in nodes_of(path) if isinstance(node, ast.Call))
    return [(ast.unparse(node.func), node) for node in found]
