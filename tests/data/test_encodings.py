"""Text files that are not UTF-8: read in the encoding of their letters, or asked about, and never in silence."""

import json

import pytest

from lora_studio.data.dataset import prepare
from lora_studio.data.readers.text_encoding import guess_encoding
from lora_studio.data.sources import open_source
from lora_studio.errors import StudioError
from tests.data.reading import read_records

SPOKEN = {
    "zh": [
        ("图书馆几点开门？", "早上九点开门。"),
        ("洗手间在哪里？", "在楼梯的左边。"),
        ("可以借几本书？", "最多五本，为期三周。"),
    ],
    "zht": [
        ("圖書館幾點開門？", "早上九點開門。"),
        ("洗手間在哪裡？", "在樓梯的左邊。"),
        ("可以借幾本書？", "最多五本，為期三週。"),
    ],
    "ko": [("도서관은 언제 여나요?", "아침 아홉 시에 엽니다."), ("화장실은 어디에 있나요?", "계단 왼쪽에 있습니다.")],
    "ja": [("図書館は何時に開きますか？", "朝九時に開きます。"), ("お手洗いはどこですか？", "階段の左にあります。")],
    "ru": [("Когда открывается библиотека?", "В девять часов утра."), ("Где находится лестница?", "Слева от входа.")],
    "pl": [
        ("Kiedy otwiera się biblioteka?", "O dziewiątej, proszę przyjść później."),
        ("Gdzie są książki?", "Na górze."),
    ],
    "cs": [
        ("Kdy se otevírá knihovna?", "V devět hodin, přijďte včas."),
        ("Kde je schodiště?", "Vlevo za dveřmi, už čeká."),
    ],
    "ar": [("متى تفتح المكتبة؟", "في التاسعة صباحا."), ("أين السلم؟", "على يسار الباب، قرب النافذة.")],
    "de": [
        ("Wann öffnet die Bücherei?", "Um neun, für Schüler früher."),
        ("Wo ist die Tür?", "Hinter der großen Säule."),
    ],
    "fr": [
        ("Où est l’escalier ?", "À gauche de l’entrée, très près."),
        ("C’est ouvert ?", "Oui, dès neuf heures, même l’été."),
    ],
    "en": [("Who said “no”?", "It’s the librarian – she’s naïve."), ("Is there a café?", "Yes, and it’s on the left.")],
}
WRITTEN = [
    *(("zh", "gb18030"), ("zht", "big5"), ("ko", "cp949"), ("ja", "cp932"), ("ja", "euc_jp"), ("ru", "cp1251")),
    *(("ru", "koi8_r"), ("ru", "cp866"), ("pl", "cp1250"), ("pl", "iso8859_2"), ("cs", "cp1250"), ("ar", "cp1256")),
    *(("de", "cp1252"), ("de", "mac_roman"), ("de", "cp850"), ("fr", "cp1252"), ("fr", "mac_roman"), ("en", "cp1252")),
]


def rows_of(language: str) -> list[dict[str, str]]:
    return [{"prompt": asked, "completion": answered} for asked, answered in SPOKEN[language]]


@pytest.mark.parametrize(("language", "encoding"), WRITTEN)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_is_read_in_the_encoding_of_its_letters_and_says_so(write, language, encoding, ending):
    rows = rows_of(language)
    if ending == "csv":
        text = "prompt,completion\r\n" + "".join('"{prompt}","{completion}"\r\n'.format(**row) for row in rows)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file = read_records(write(f"a.{ending}", text.encode(encoding)))
    assert [record.fields for record in file.records] == rows
    assert any("detected from its characters" in sentence for sentence in file.assumptions)


def test_two_encodings_that_make_sense_are_asked_about_and_a_named_one_is_used(write):
    path = write("a.csv", "prompt,completion\nДа?,Нет.\n".encode("koi8_r"))
    with pytest.raises(StudioError, match="uncertain") as error:
        open_source(path)
    assert "koi8_r, KOI8-R (Russian): Да?,Нет." in error.value.message
    assert "data.encoding" in error.value.hint
    source = open_source(path, "KOI8-R")
    assert [row.fields for row in source.rows()] == [{"prompt": "Да?", "completion": "Нет."}]
    assert "The file is read as KOI8-R (Russian), as set in data.encoding." in source.assumptions
    with pytest.raises(StudioError, match="Unknown encoding 'klingon'"):
        open_source(path, "klingon")


def test_what_is_valid_utf_8_is_read_so_whatever_is_named(write):
    source = open_source(write("a.csv", "prompt,completion\nÖl?,Süß.\n"), "gb18030")
    assert [row.fields for row in source.rows()] == [{"prompt": "Öl?", "completion": "Süß."}]
    assert any("valid UTF-8 and read as such" in sentence for sentence in source.assumptions)


def test_single_lines_in_another_encoding_are_bad_rows_of_a_utf_8_file(write):
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows_of("de") * 3]
    file = read_records(write("a.jsonl", b"\n".join([*lines, lines[0].decode().encode("cp1252")])))
    assert (len(file.records), [bad.row for bad in file.bad_rows]) == (6, [7])


def test_a_line_that_is_utf_8_by_chance_does_not_make_the_file_so(write):
    lines = [row["prompt"].encode("gb18030") for row in rows_of("zh") * 8]
    file = read_records(write("a.txt", b"\n".join([*lines, "é".encode()])))
    assert [record.fields["text"] for record in file.records][:3] == [row["prompt"] for row in rows_of("zh")]


def test_japanese_by_escape_codes_is_read(write):
    file = read_records(write("a.txt", "こんにちは、元気ですか。\nはい。\n".encode("iso2022_jp")))
    assert [record.fields["text"] for record in file.records] == ["こんにちは、元気ですか。", "はい。"]


def test_a_guess_takes_no_longer_for_odd_bytes():
    for letters in (b"\xe9", b"\x81", b"\xff ", bytes(range(128, 256))):
        guess_encoding(letters * (8192 // len(letters)))


def test_training_reads_the_file_in_the_named_encoding(write, tokenizer, tmp_path):
    path = str(write("a.csv", "prompt,completion\nДа?,Нет.\nНет?,Да.\n".encode("koi8_r")))
    seen = prepare(path, tokenizer, encoding="koi8_r", cache_folder=tmp_path / "cache", validation_fraction=0)
    other = prepare(path, tokenizer, encoding="cp866", cache_folder=tmp_path / "cache", validation_fraction=0)
    assert [message.content for message in seen.conversations[0].messages] == ["Да?", "Нет."]
    assert other.conversations[0] != seen.conversations[0]
    assert other.fingerprint != seen.fingerprint
