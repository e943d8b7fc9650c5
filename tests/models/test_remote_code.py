"""No program code of a model runs here unless the person who starts the studio named that very model; and no shell."""

import ast

import pytest

from lora_studio.config.parsing import ConfigError, parse
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.preflight import NOTE, Machine, preflight
from lora_studio.models import hub
from lora_studio.models.hardware import Device
from tests.source import named_calls

OWN = "evil/model"


def calls(*names: str) -> list[ast.Call]:
    """Calls anywhere in the package of functions whose names, as they are written, end with these."""
    return [node for called, node in named_calls() if f".{called}".endswith(tuple(f".{name}" for name in names))]


def test_no_model_may_run_code_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hub.TRUSTED, raising=False)
    assert not hub.may_run_code_of(OWN)
    monkeypatch.setenv(hub.TRUSTED, "other/model, evil/model2")
    assert not hub.may_run_code_of(OWN)
    assert not hub.may_run_code_of("")
    monkeypatch.setenv(hub.TRUSTED, f"other/model, {OWN}")
    assert hub.may_run_code_of(OWN)


def test_a_config_can_not_allow_it() -> None:
    with pytest.raises(ConfigError):
        parse({"model": {"name": OWN, "trust_remote_code": True}})


def test_the_checks_name_the_repository_whose_code_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hub.TRUSTED, OWN)
    machine = Machine(Device("CPU", "cpu", 10**10, 10**10), 10**10, 10**12)
    checks = preflight(parse({"model": {"name": OWN}}), machine, StudioError("none")).checks
    assert [check.state for check in checks if check.title == "Code" and OWN in check.found] == [NOTE]
    assert "Code" not in [check.title for check in preflight(Config(), machine, StudioError("none")).checks]


def test_every_model_and_tokenizer_is_loaded_with_that_answer_and_without_pickles() -> None:
    given = [
        keyword.value for _, node in named_calls() for keyword in node.keywords if keyword.arg == "trust_remote_code"
    ]
    assert len(given) == 6
    # An adapter's own tokenizer, which may come from anywhere, never runs code.
    assert {ast.unparse(value) for value in given} == {"may_run_code_of(name)", "False"}
    models = [call for call in calls("from_pretrained") if "auto_class" in ast.unparse(call.func)]
    assert len(models) == 4, "the base, its files before a run, and the base of an exported script and chat app"
    assert not [call for call in calls("from_pretrained") if "AutoModel" in ast.unparse(call.func)]
    for call in models:
        safe = [keyword.value for keyword in call.keywords if keyword.arg == "use_safetensors"]
        assert [ast.unparse(value) for value in safe] == ["True"]


def test_nothing_is_given_to_a_shell_and_no_text_is_run_as_a_program() -> None:
    started = calls("run", "Popen", "call", "check_output", "check_call")
    assert [call for call in started if "subprocess" in ast.unparse(call.func)]
    assert not [call for call in started for keyword in call.keywords if keyword.arg == "shell"]
    assert not calls("os.system", "os.popen", "getoutput", "getstatusoutput", "create_subprocess_shell", "startfile")
    assert not [call for call in calls("eval", "exec") if isinstance(call.func, ast.Name)]
    assert not calls("pickle.load", "torch.load", "joblib.load", "yaml.load", "yaml.unsafe_load")
    # The process that runs templates takes requests from its own parent alone; what it answers is JSON.
    assert [ast.unparse(call.args[0].func) for call in calls("pickle.loads")] == ["requests.read"]
