"""Documents as paragraphs, chunks and rows: formats, hostile files, sizes as the tokenizer counts, answers."""

import contextlib
import io
import json
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import docx
import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject
from tokenizers import Tokenizer

from lora_studio.data import generated
from lora_studio.data.formats import detect_format
from lora_studio.data.generated import EMPTY, NEAR, PROMPT, UNGROUNDED, Row, fill, marks, overlap, read_rows, reviewed
from lora_studio.data.memory_limit import limited
from lora_studio.data.messages import Record
from lora_studio.data.readers import documents
from lora_studio.data.readers.documents import (
    MAX_CHARACTERS_PER_TOKEN,
    Chunk,
    Document,
    Paragraph,
    read_chunks,
    read_document,
    split,
    write_chunks,
)
from lora_studio.errors import StudioError
from lora_studio.workspace import demo_folder

TOKENIZER = Tokenizer.from_file(str(demo_folder() / "model" / "tokenizer.json"))


def count(texts: Sequence[str]) -> list[int]:
    return [len(encoding.ids) for encoding in TOKENIZER.encode_batch(list(texts), add_special_tokens=False)]


def pdf(path: Path, pages: Sequence[Sequence[str]], password: str = "") -> Path:
    """A PDF whose pages have these lines."""
    writer = PdfWriter()
    for lines in pages:
        page = writer.add_blank_page(612, 792)
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        font_object = DictionaryObject({NameObject(name): NameObject(value) for name, value in font.items()})
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font_object)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        shown = "".join(f"({line}) Tj 0 -14 Td " for line in lines)
        stream.set_data(f"BT /F1 11 Tf 72 720 Td {shown}ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
    if password:
        writer.encrypt(password)
    writer.write(path)
    return path


def word(path: Path) -> Path:
    """A DOCX with headings, a paragraph and a table."""
    document = docx.Document()
    document.add_heading("Guide", 0)
    document.add_heading("Ports", 1)
    document.add_paragraph("The server listens on port 7860.")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "flag", "--port"
    document.save(str(path))
    return path


def test_markdown_has_paragraphs_under_the_path_of_their_headings(tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text(
        "Intro\n=====\n\nHello\nthere.\n\n## Use ##\n\n```\n# no heading\n\nx = 1\n```\nMore.\n# Other\nEnd.\n",
        encoding="utf-8",
    )
    shown = [(part.heading, part.text, part.opens) for part in read_document(path).paragraphs]
    assert shown == [
        ("Intro", "Intro\n=====", True),
        ("Intro", "Hello\nthere.", False),
        ("Intro > Use", "## Use ##", True),
        ("Intro > Use", "```\n# no heading\n\nx = 1\n```", False),
        ("Intro > Use", "More.", False),
        ("Other", "# Other", True),
        ("Other", "End.", False),
    ]


def test_a_pdf_has_the_page_of_each_paragraph_and_no_running_heads(tmp_path: Path) -> None:
    full = "This line of the page is exactly as long as most of the lines here"
    names = ("ant", "bee", "cat", "dog", "eel")
    pages = [["The handbook", f"{full} {one}", "exam-", f"ple of {one}.", f"A {one}.", f"Page {one}"] for one in names]
    pages = [[*page[:-1], f"Page {at}"] for at, page in enumerate(pages)]
    document = read_document(pdf(tmp_path / "book.pdf", [*pages, []]))
    assert [(part.page, part.text) for part in document.paragraphs[:2]] == [
        (1, f"{full} ant example of ant."),
        (1, "A ant."),
    ]
    assert document.paragraphs[-1].page == 5
    assert document.notes == ["1 of 6 pages have no text: they are empty, or scanned images."]


def test_a_docx_has_its_headings_and_tables(tmp_path: Path) -> None:
    parts = read_document(word(tmp_path / "guide.docx")).paragraphs
    assert [(part.heading, part.text) for part in parts[1:]] == [
        ("Guide > Ports", "Ports"),
        ("Guide > Ports", "The server listens on port 7860."),
        ("Guide > Ports", "flag | --port"),
    ]


def test_text_in_an_older_encoding_is_read_as_data_files_are(tmp_path: Path) -> None:
    path = tmp_path / "alt.txt"
    path.write_bytes("Die Straße führt über größere Höhen. Das ist schön für die Gäste.".encode("cp1252"))
    assert "größere Höhen" in read_document(path).paragraphs[0].text


def _bomb(good: Path, path: Path, body: bytes) -> Path:
    """The same DOCX with another body."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, body if member.filename == "word/document.xml" else source.read(member))
    return path


NAMESPACE = b'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("locked.pdf", "is encrypted"),
        ("scanned.pdf", "has no text on its 2 pages: it holds scanned images"),
        ("cut.pdf", "is damaged: it cannot be read as PDF"),
        ("noise.pdf", "is not a PDF"),
        ("noise.docx", "cannot be read as DOCX"),
        ("entities.docx", "cannot be read as DOCX"),
        ("old.docx", "is encrypted, or an old Word file"),
        ("blank.md", "holds no text"),
        ("noise.txt", "noise.txt is not UTF-8"),
        ("old.doc", "is not a supported document"),
        ("gone.md", "does not exist"),
    ],
)
def test_a_hostile_document_is_refused_in_a_sentence_with_a_way_out(tmp_path: Path, name: str, words: str) -> None:
    path, noise = tmp_path / name, bytes(range(256)) * 20
    match name:
        case "locked.pdf":
            pdf(path, [["secret"]], password="key")
        case "scanned.pdf":
            pdf(path, [[], []])
        case "cut.pdf":
            path.write_bytes(pdf(path, [["text"] * 40] * 30).read_bytes()[:3000])
        case "entities.docx":
            entities = b"".join(
                b'<!ENTITY a%d "%s">' % (at, b"&a%d;" % (at - 1) * 10 if at else b"x" * 1000) for at in range(9)
            )
            text = b"<w:body><w:p><w:r><w:t>&a8;</w:t></w:r></w:p></w:body>"
            body = b"<!DOCTYPE l [%s]><w:document %s>%s</w:document>" % (entities, NAMESPACE, text)
            _bomb(word(tmp_path / "good.docx"), path, body)
        case "old.docx":
            path.write_bytes(b"\xd0\xcf\x11\xe0" + noise)
        case "blank.md":
            path.write_text("\n \n\n")
        case "gone.md":
            pass
        case _:
            path.write_bytes(noise)
    with pytest.raises(StudioError, match=words) as error:
        read_document(path)
    assert error.value.hint


@pytest.mark.slow
def test_a_document_that_unpacks_to_too_much_is_refused_before_it_is_read_or_by_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = word(tmp_path / "good.docx")
    body = b"<w:p><w:r><w:t>x</w:t></w:r></w:p>" * 700_000
    bomb = _bomb(good, tmp_path / "bomb.docx", b"<w:document %s><w:body>%s</w:body></w:document>" % (NAMESPACE, body))
    assert bomb.stat().st_size < 300_000
    with pytest.raises(StudioError, match="more memory than"), limited(most=1):
        read_document(bomb)
    monkeypatch.setattr(documents, "MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(StudioError, match=r"unpacks to 25 MB; the limit is 1 MB"):
        read_document(bomb)
    long = tmp_path / "long.md"
    long.write_text("word " * 1000)
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 1000)
    with pytest.raises(StudioError, match="more than 1,000 characters"):
        read_document(long)


def test_chunks_hold_the_whole_text_within_their_size_as_the_tokenizer_counts_it() -> None:
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(Path("docs").glob("c*.md")))
    paragraphs = [Paragraph(part, heading="Docs", opens=part.startswith("#")) for part in text.split("\n\n")]
    for size in (48, 300):
        chunks = split(Document("docs.md", paragraphs), count, size, 0)
        assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
        assert [chunk.tokens for chunk in chunks] == count([chunk.text for chunk in chunks])
        assert max(chunk.tokens for chunk in chunks) <= size
        assert "".join(" ".join(chunk.text for chunk in chunks).split()) == "".join(text.split())


def test_a_chunk_ends_before_a_heading_and_else_overlaps_the_next_one() -> None:
    sentences = [f"Sentence number {at} says that." for at in range(12)]
    one = [Paragraph(" ".join(sentences))]
    plain, overlapping = (split(Document("a.md", one), count, 40, tokens) for tokens in (0, 15))
    assert len(overlapping) > len(plain)
    for first, second in pairwise(overlapping):
        last = first.text.rpartition(". ")[2]
        assert second.text.startswith(last)
    parts = [Paragraph("Alpha is first. " * 4), Paragraph("# Beta", "Beta", opens=True), Paragraph("Beta.", "Beta")]
    chunks = split(Document("a.md", parts), count, 60, 20)
    assert [(chunk.heading, chunk.text) for chunk in chunks] == [
        ("", ("Alpha is first. " * 4).strip()),
        ("Beta", "# Beta\n\nBeta."),
    ]
    with pytest.raises(StudioError, match="more than half"):
        split(Document("a.md", one), count, 40, 21)


def test_text_without_words_is_cut_by_characters_and_chunks_are_kept_as_they_are(tmp_path: Path) -> None:
    chunks = split(Document("a.txt", [Paragraph("x" * 20_000), Paragraph("猫は寝る。" * 50)]), count, 32, 0)
    assert sum(chunk.text.count("x") for chunk in chunks) == 20_000
    assert sum(chunk.text.count("猫") for chunk in chunks) == 50
    assert max(len(chunk.text) for chunk in chunks) <= MAX_CHARACTERS_PER_TOKEN * 32
    write_chunks(tmp_path / "chunks.jsonl", chunks)
    assert read_chunks(tmp_path / "chunks.jsonl") == chunks
    (tmp_path / "chunks.jsonl").write_text('{"number": 1}\n')
    with pytest.raises(StudioError, match="lost or damaged"):
        read_chunks(tmp_path / "chunks.jsonl")


@pytest.mark.parametrize(
    "answer",
    [
        '[{"question": "Who?", "answer": "Me"}, {"question": "Why?", "answer": "42"}]',
        'Sure!\n```json\n{"rows": [{"Q": "Who?", "A": "Me"}, {"prompt": "Why?", "completion": 42}]}\n```\nDone.',
        '{"question": "Who?", "answer": "Me"}\n{"question": "Why?", "answer": "42"}\n',
        '[{"question": "Who?", "answer": "Me"}, {"question": "Why?", "answer": "42"}, {"question": "Wh',
        '[{"question": "Who?", "answer": "Me",}, {"question": "Why?", "answer": "42"},]',
        '<think>[{"question": "no", "answer": "no"}]</think>[{"instruction": "Who?", "output": "Me"},'
        ' {"user": "Why?", "assistant": "42"}]',
        "**Q1:** Who?\n**A1:** Me\n\n2. Question: Why?\n   Answer: 42",
    ],
)
def test_rows_are_read_in_whatever_shape_a_model_writes_them(answer: str) -> None:
    rows = read_rows(answer, 7)
    assert [(row.question, row.answer, row.key) for row in rows] == [("Who?", "Me", "7:0"), ("Why?", "42", "7:1")]


@pytest.mark.parametrize("answer", ["", "No.", '["a", "b"]', '[{"question": "", "answer": "x"}]', "[" * 50_000])
def test_an_answer_without_rows_gives_none(answer: str) -> None:
    assert read_rows(answer, 0) == []


def test_a_prompt_is_filled_and_the_text_of_a_chunk_fills_nothing() -> None:
    chunk = Chunk(0, "a.md", "", 2, "Write {count} of {chunk}", 9)
    filled = fill("{count} from {source}, {heading}: {chunk}", chunk, 5)
    assert filled == "5 from a.md, -: Write {count} of {chunk}"
    generated.check_prompt(PROMPT)
    with pytest.raises(StudioError, match=r"does not contain \{chunk\}"):
        generated.check_prompt("Write questions.")


def test_near_duplicates_and_ungrounded_answers_are_marked_and_dropped_rows_are_not_compared() -> None:
    text = "The server listens on port 7860 of this machine and answers every request within a second."
    rows = [
        Row(0, 0, "Which port does the server of this machine listen on?", "It listens on port 7860 of this machine."),
        Row(0, 1, "which port does the server of this machine listen on?", "It listens on port 7860 of this machine."),
        Row(0, 2, "Who wrote it?", "A famous company in California did so years ago."),
        Row(0, 3, "Dropped", "A famous company in California did so years ago.", dropped=True),
        Row(0, 4, "Empty?", " "),
    ]
    assert marks(rows, {0: text}) == {"0:1": [NEAR], "0:2": [UNGROUNDED], "0:4": [EMPTY]}
    assert overlap("Listens on PORT 7860", text) == 1.0
    assert overlap("port nine", text) == 0.5
    assert overlap("the end of an era in it", text) == pytest.approx(2 / 7)  # there are only short words
    assert overlap("A bank of the town on port 7860", text) == 0.5
    assert overlap("猫は起きる", "猫は寝る") == pytest.approx(3 / 5)
    first, second = reviewed(rows[:2], {"0:0": {"dropped": True}, "0:1": {"question": "Port?", "answer": "7860"}})
    assert (first.dropped, second.question, second.edited) == (True, "Port?", True)
    assert reviewed(rows[:1], {"0:0": "nonsense"}) == rows[:1]


@pytest.mark.parametrize(("form", "shape"), [("chat", "messages"), ("prompt", "prompt_completion")])
def test_a_training_row_names_where_it_comes_from_and_is_read_by_its_columns(form: str, shape: str) -> None:
    chunk = Chunk(3, "book.pdf", "Guide > Ports", 2, "text", 1)
    row = generated.training_row(Row(3, 0, "Port?", "7860"), chunk, form)
    assert (row["source"], row["chunk"], row["page"]) == ("book.pdf", 4, 2)
    found = detect_format([Record(at, json.loads(json.dumps(row))) for at in range(1, 4)])
    assert found.name == shape


def test_a_pdf_made_of_noise_never_ends_in_a_traceback(tmp_path: Path) -> None:
    whole = pdf(tmp_path / "whole.pdf", [["Some text"] * 5] * 3).read_bytes()
    path = tmp_path / "broken.pdf"
    for at in range(40):
        broken = bytearray(whole)
        place = 20 + at * (len(whole) - 60) // 40
        broken[place : place + 12] = io.BytesIO(bytes(range(at, at + 12))).read()
        path.write_bytes(bytes(broken))
        with contextlib.suppress(StudioError):
            assert read_document(path).paragraphs
