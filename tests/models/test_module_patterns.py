"""Regular expressions of people and adapters end in time, whatever they are, and match what peft matches."""

import re
import time
from typing import Any

import pytest

from lora_studio.config.parsing import ConfigError, parse
from lora_studio.errors import StudioError
from lora_studio.models import adapter_files
from lora_studio.models.adapter_files import PROBES, PatternError, check, check_settings, matching
from lora_studio.models.shape import architecture, read_config
from lora_studio.models.targets import adapter
from tests.cpu_time import CpuTime

EXPLODING = [r"(.|\w|[a-z])*!", r"(\w+\.?)+!", r"((a|o|e|l|m|d|\.|\w)*)*x$", "(?i)" + "[\\0-\U0010ffff]" * 300]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_files, "CPU_SECONDS", 0.3)


@pytest.mark.parametrize("expression", EXPLODING)
def test_an_expression_that_explodes_is_ended_and_told(expression: str) -> None:
    with CpuTime() as spent, pytest.raises(PatternError, match="takes too long"):
        matching(expression, PROBES)
    assert spent.seconds < 0.2, "it was matched in this very process"


@pytest.mark.parametrize("expression", ["(q_proj", "a{99999999999}", "(" * 1900 + ")" * 1900, "q[", "(?P<a>x)(?P<a>y)"])
def test_what_is_no_expression_is_told(expression: str) -> None:
    with pytest.raises(PatternError, match="is not a valid regular expression"):
        check([expression])


def test_an_expression_of_any_length_is_told() -> None:
    with pytest.raises(PatternError, match="5,000 characters"):
        check(["a" * 5000])


@pytest.mark.parametrize(
    "expression",
    [
        r".*\.q_proj",
        r"^(?!.*vision).*(q_proj|v_proj|out_proj)$",
        r"model\.layers\.([0-9]|3[01])\..*",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|gate_up_proj).*?)|(?:\bmodel\.layers\.\d+\..*)",
        "lm_head",
    ],
)
def test_what_is_matched_is_what_peft_matches(expression: str) -> None:
    assert matching(expression, PROBES) == [name for name in PROBES if re.fullmatch(expression, name)] != []


def test_the_config_refuses_an_exploding_expression_beside_its_other_problems() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        parse({"lora": {"target_modules": EXPLODING[0]}, "training": {"max_steps": 0}})
    assert {problem.path for problem in refused.value.problems} == {"lora.target_modules", "training.max_steps"}
    assert "takes too long" in str(refused.value)
    assert time.monotonic() - began < 10


def test_names_of_modules_to_save_are_no_expressions() -> None:
    with pytest.raises(ConfigError, match=r"modules_to_save.*not a regular expression"):
        parse({"lora": {"modules_to_save": r"(.|\w)*!"}})


def test_an_expression_that_explodes_on_one_model_alone_is_told_by_the_count_of_its_parameters() -> None:
    numbers = read_config("demo")
    model = architecture(numbers) if numbers else None
    assert model is not None
    slow = r"(?=.*layers\.3\.)(.|\w|[a-z])*!"
    check([slow])
    with pytest.raises(PatternError, match="takes too long"):
        adapter(model, r=8, target_modules=slow)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": EXPLODING[0]},
        {"exclude_modules": EXPLODING[1]},
        {"feedforward_modules": EXPLODING[1]},
        {"rank_pattern": {EXPLODING[0]: 4}},
        {"alpha_pattern": {"q_proj": 1, EXPLODING[0]: 4}},
        {"layers_to_transform": [0], "layers_pattern": [r"(.|\w)*(.|\w)*(.|\w)*(.|\w)*(.|\w)*!"]},
        {"target_modules": ["q_proj", EXPLODING[0]]},
        {"modules_to_save": [EXPLODING[0]]},
    ],
)
def test_no_setting_of_an_adapter_reaches_peft_as_an_exploding_expression(settings: dict[str, Any]) -> None:
    with pytest.raises(StudioError):
        check_settings(settings)


def test_settings_without_expressions_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_files, "_answer", None)
    check_settings({"target_modules": ["q_proj", "v_proj"], "rank_pattern": {}, "modules_to_save": None})
    check_settings({"target_modules": "all-linear"})
