"""Training and inference: the only package with torch, transformers, peft and trl. It runs only in child processes.

May import every package without torch and gradio, except access and api. Inside, the order is runtime, models, chat,
evaluate, train, export; each may import those before it.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

# Read once when the libraries are imported, so it has to stand before: nothing is ever reported to anybody.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Waiting OpenMP threads sleep instead of spinning: with a browser on the same cores a step is ten times as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMPILING_MODULE = "bitsandbytes.backends.default.ops"


def compile_at_first_call() -> None:
    """Lets bitsandbytes compile its functions when they are called; to be called before it is imported.

    peft imports bitsandbytes wherever it is installed, and its decorators call `torch.compile`, which loads the whole
    compiler. What the functions compute, and that they fall back to the plain ones, stays.
    """
    if COMPILING_MODULE not in sys.modules and _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == COMPILING_MODULE else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        torch = sys.modules["torch"]
        compile_now = torch.compile
        vars(torch)["compile"] = functools.partial(compile_later, compile_now)
        try:
            super().exec_module(module)
        finally:
            vars(torch)["compile"] = compile_now


def compile_later(
    compile_now: Callable[..., Callable[..., Any]], function: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    """A function that compiles `function` when it is called first."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return compile_now(function, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


compile_at_first_call()
