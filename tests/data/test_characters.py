"""A look without a tokenizer."""

from lora_studio.data.preview import inspect_characters


def test_characters_are_counted_without_a_tokenizer(write):
    path = write("a.jsonl", [{"prompt": "abc", "completion": "de"}, {"prompt": "a", "completion": ""}] * 2)
    found = inspect_characters(str(path), percentiles=[75])
    assert (found["rows"], found["bad_rows"], found["total_characters"]) == (2, 2, 10)
    assert found["characters"]["p75"] == 5
    assert [bad["row"] for bad in found["bad_row_list"]] == [2, 4]
    assert sum(found["histogram"]["counts"]) == 2


def test_of_a_pair_the_longer_side_counts(write):
    path = write("a.jsonl", [{"prompt": "abc", "chosen": "de", "rejected": "fghi"}, {"prompt": "a", "chosen": "b"}])
    found = inspect_characters(str(path))
    assert (found["format"], found["rows"], found["bad_rows"]) == ("preference", 1, 1)
    assert found["total_characters"] == 7


def test_characters_are_counted_as_the_encoding_and_the_mapping_say(write):
    path = write("a.csv", "asked,told\nWhere?,\u4e09\u53f7\u95e8\n".encode("gb18030"))
    found = inspect_characters(str(path), mapping={"text": "told"}, encoding="gb18030")
    assert (found["format"], found["total_characters"]) == ("text", 3)
