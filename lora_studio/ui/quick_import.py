"""Gradio without its stub writer: importing it takes three fifths of the time.

Wherever Gradio is imported it makes the `.pyi` file of each of its components anew: it reads and parses source and stub
and fills a template, two of the five seconds in which the page starts, for files that its wheel brings along.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

MODULE, WRITER = "gradio.component_meta", "create_or_modify_pyi"


def leave_stubs_alone() -> None:
    """To be called before Gradio is imported; afterwards it changes nothing."""
    if MODULE not in sys.modules:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == MODULE else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        vars(module)[WRITER] = write_no_stub


def write_no_stub(_component: type, _name: str, _events: object) -> None:
    """In the place of the writer."""
