"""What is left out when a worker starts, and that it is there when it is needed."""

import subprocess
import sys

import pytest
import torch
from bitsandbytes.backends.default import ops

from lora_studio.engine import compile_later


@pytest.mark.slow
def test_a_worker_starts_without_the_compiler_and_without_what_only_rouge_needs() -> None:
    program = (
        "import sys, lora_studio.engine.train.program, bitsandbytes\n"
        "print([name for name in ('torch._inductor.compile_fx', 'nltk') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip().splitlines()[-1] == "[]"


def test_a_function_is_compiled_once_at_its_first_call_with_the_options_given() -> None:
    calls = []

    def compile_now(function, **options):
        calls.append(options)
        return lambda value: function(value) + 1

    late = compile_later(compile_now, lambda value: value * 2, dynamic=True)
    assert calls == []
    assert (late(2), late(3)) == (5, 7)
    assert calls == [{"dynamic": True}]


def test_torch_compiles_as_ever_after_bitsandbytes_was_imported() -> None:
    assert ops.__loader__ is not None
    assert torch.compile.__module__ == "torch"
