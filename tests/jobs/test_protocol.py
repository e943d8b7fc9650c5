"""The messages of a session child: what stands on a line, and that no setting is missing."""

from dataclasses import fields
from typing import Any

import pytest
from pydantic import ValidationError

from lora_studio.config.sections import Data
from lora_studio.data.report import Look
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import (
    DataRequest,
    FirstRows,
    Generated,
    Inspect,
    Load,
    LookAtFirst,
    Piece,
    Preview,
    Request,
    kind_of,
    parse_request,
)


def test_a_line_has_the_fields_that_were_set_and_no_others() -> None:
    analysis = Inspect(train_file="rows.jsonl", max_length=64, show_examples=1)
    assert analysis.line(3) == {
        "id": 3,
        "method": "inspect",
        "params": {"train_file": "rows.jsonl", "max_length": 64, "show_examples": 1},
    }
    params = Preview(row_index=2, window=None, of=analysis).line(4)["params"]
    assert params == {"row_index": 2, "window": None, "of": analysis.to_fields()}
    assert Load().line(5)["params"] == {}


def test_a_request_for_data_knows_every_setting_of_the_data_section() -> None:
    assert set(Data.model_fields) <= set(DataRequest.model_fields)
    given = LookAtFirst(**Data().model_dump(), goal="any", model="demo", revision=None)
    assert given.settings() == {**Data().model_dump(), "goal": "any"}


def test_an_analysis_takes_its_settings_apart_from_its_view() -> None:
    view = {field.name for field in fields(Look)}
    analysis = Inspect(train_file="a", model="b", cache_folder="c", percentiles=[75.0], truncation="drop")
    assert view == set(Inspect.model_fields) - set(DataRequest.model_fields) - {"cache_folder"}
    assert analysis.view() == {"percentiles": [75.0]}
    assert analysis.settings() == {"train_file": "a", "truncation": "drop"}


@pytest.mark.parametrize("field", [{"colum": []}, {"adapters": {"a": 3}}])
def test_a_misspelled_field_and_a_value_of_another_type_are_no_message(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Load.model_validate(field)


def test_an_answer_is_read_as_what_its_request_asks_for() -> None:
    line = {"id": 1, "kind": "result", "rows": 3, "file_kind": "jsonl", "largest_id": 7}
    first = LookAtFirst(train_file="a").parse_answer(line)
    assert first == FirstRows(report={"rows": 3, "file_kind": "jsonl"}, largest_id=7)
    assert {**first.to_fields(), "id": 1, "kind": kind_of(first)} == line
    piece = Load().parse_answer({"id": 1, "kind": "piece", "texts": ["a"], "tokens": [1]})
    assert (piece, kind_of(piece)) == (Piece(texts=["a"], tokens=[1]), "piece")
    assert kind_of(Generated(columns=[])) == "result"
    with pytest.raises(ValueError, match="no kind of answer 'song'"):
        Load().parse_answer({"id": 1, "kind": "song"})


def test_every_request_names_its_method_and_its_result() -> None:
    with pytest.raises(StudioError, match="no method 'dance'"):
        parse_request({"id": 1, "method": "dance"})
    with pytest.raises(StudioError, match="fields of 'preview' are not right"):
        parse_request({"id": 1, "method": "preview", "params": {}})
    assert parse_request(Preview(row_index=1).line(3)) == Preview(row_index=1)
    kinds: list[type[Request[Any]]] = [Inspect, LookAtFirst, Preview, Load]
    assert [kind.method for kind in kinds] == ["inspect", "look_at_first", "preview", "load"]
    assert [kind.result.__name__ for kind in kinds] == ["Inspected", "FirstRows", "PreviewedRow", "Loaded"]
