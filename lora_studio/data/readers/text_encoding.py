"""Opens a data file: unpacks gzip, detects the encoding, and yields characters. Refuses other archives.

UTF-8 comes first, then Latin encodings by the letters of their languages, then charset-normalizer.
"""

import codecs
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from lora_studio.data.messages import is_broken
from lora_studio.errors import StudioError

KNOWN = "Supported are JSON, JSONL, CSV, TSV, Excel (.xlsx), Parquet, Arrow, TXT and Markdown files; text also as .gz."
BOMB_SIZE, BOMB_RATIO = 1 << 28, 200
_GZIP = b"\x1f\x8b"
_PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"7z\xbc\xaf": "7-Zip"}
_OFFICE = {".docx": "a Word document", ".ods": "an OpenDocument spreadsheet", ".odt": "a text document"}
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
_TEXTS = (".txt", ".text", ".md", ".markdown")
_PIECE = 1 << 14


class Gunzip(io.RawIOBase):
    """The unpacked bytes of a gzip file, whole or in several members; `torn` once it proves to end too early."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._name = path.name
        self._most = max(BOMB_SIZE, path.stat().st_size * BOMB_RATIO)
        self._inflate = zlib.decompressobj(wbits=31)
        self._pending = memoryview(b"")  # a slice of bytes would be a copy, of megabytes for each piece that is read
        self._given = 0
        self._ended = False
        self.torn = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending and not self._ended:
            self._fill()
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        self._given += size
        if self._given > self._most:
            raise StudioError(
                f"{self._name} decompresses to more than {BOMB_RATIO} times its size and {BOMB_SIZE >> 20} MiB.",
                "If you trust it, decompress it yourself and use the file inside.",
            )
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

    def _fill(self) -> None:
        packed = self._inflate.unused_data or self._file.read(_PIECE)
        if self._inflate.eof and packed.startswith(_GZIP):
            self._inflate = zlib.decompressobj(wbits=31)
        elif self._inflate.eof:
            self._ended = True
            return
        try:
            self._pending = memoryview(self._inflate.decompress(packed))
        except zlib.error:
            packed = b""
        if not packed:
            self._ended = self.torn = True


def open_bytes(path: Path) -> io.BufferedReader:
    """A file's bytes, unpacked where it is gzip. Raises StudioError for a file that is absent, packed or unreadable."""
    try:
        file = path.open("rb")
        head = file.read(8)
        if head.startswith(_GZIP):
            file.close()
            return io.BufferedReader(Gunzip(path), 1 << 16)
        file.seek(0)
    except FileNotFoundError:
        raise StudioError(f"The file {path} does not exist.", "Give the path of a data file.") from None
    except IsADirectoryError:
        raise StudioError(f"{path} is a folder, not a file.", "Give the path of one data file.") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StudioError(f"{path.name} cannot be read: {why}.", "Check its name and permissions.") from None
    for mark, name in _PACKED.items():
        if head.startswith(mark):
            file.close()
            raise _packed(path, name)
    return file


def _packed(path: Path, name: str) -> StudioError:
    if name == "zip" and path.suffix.lower() in _OFFICE:
        return StudioError(
            f"{path.name} is {_OFFICE[path.suffix.lower()]}.",
            "Save the table as .xlsx or CSV, or the text as a text file.",
        )
    return StudioError(f"{path.name} is compressed with {name}.", "Decompress it and use the file inside.")


def refuse_stand_in(path: Path, head: bytes) -> None:
    """Raises StudioError for a file that is not the data: a Git LFS pointer or a web page."""
    if head.startswith(_POINTERS):
        raise StudioError(
            f"{path.name} is a pointer to a large file in Git, not the data.",
            "Get the file itself: run `git lfs pull` (or `git annex get`) in its folder, or download it from its page.",
        )
    start = head[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    is_page = start.startswith((b"<!doctype html", b"<html")) or (start.startswith(b"<?xml") and b"<html" in start)
    if (is_page or start.startswith(b"<?xml")) and kind_ending(path) not in _TEXTS:
        raise StudioError(
            f"{path.name} is {'a web page' if is_page else 'an XML document'}, not a data file.",
            "Failed downloads are often saved as such a page. Open it in a browser to read the message, and "
            "download the data file itself.",
        )


def is_torn(file: io.IOBase) -> bool:
    """Whether the packed data ended too early."""
    raw = file.raw if isinstance(file, io.BufferedReader) else None
    return isinstance(raw, Gunzip) and raw.torn


def kind_ending(path: Path) -> str:
    """The file ending that decides the kind, without .gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in (".gz", ".gzip") else path.suffix.lower()


NAMES = {
    "cp1252": "Windows-1252 (Western European)",
    "cp1250": "Windows-1250 (Central European)",
    "cp1254": "Windows-1254 (Turkish)",
    "cp1257": "Windows-1257 (Baltic)",
    "iso8859_2": "ISO 8859-2 (Central European)",
    "mac_roman": "Mac Roman",
    "mac_latin2": "Mac Central European",
    "cp850": "DOS code page 850 (Western European)",
    "cp852": "DOS code page 852 (Central European)",
    "cp1251": "Windows-1251 (Cyrillic)",
    "koi8_r": "KOI8-R (Russian)",
    "koi8_u": "KOI8-U (Ukrainian)",
    "mac_cyrillic": "Mac Cyrillic",
    "cp866": "DOS code page 866 (Cyrillic)",
    "iso8859_5": "ISO 8859-5 (Cyrillic)",
    "cp1253": "Windows-1253 (Greek)",
    "iso8859_7": "ISO 8859-7 (Greek)",
    "mac_greek": "Mac Greek",
    "cp1255": "Windows-1255 (Hebrew)",
    "cp1256": "Windows-1256 (Arabic)",
    "cp874": "Windows-874 (Thai)",
    "gb18030": "GB18030 (Chinese)",
    "big5hkscs": "Big5 (Chinese)",
    "cp949": "Windows-949 (Korean)",
    "cp932": "Windows-932, Shift-JIS (Japanese)",
    "euc_jp": "EUC-JP (Japanese)",
}
_LATIN = ("cp1252", "cp1250", "cp1254", "cp1257", "iso8859_2", "mac_roman", "cp850", "mac_latin2", "cp852")
# The letters beyond a to z that a language's texts are written with, and some of its most frequent words.
_LANGUAGES = {
    "English": (
        "éèêïöñç",
        "the of and to in is that it for you was with are this what how not be a an i he she they we my your can do "
        "does has have had if so or but on at by from as will would sure when where who why which yes no",
    ),
    "German": ("äöüßé", "der die das und ist nicht ein eine zu den mit von im für auf wie was sie ich"),
    "French": ("àâæçéèêëîïôœùûüÿ", "le la les de des et un une est en que qui dans pour pas du au il ce sur où"),
    "Spanish": ("áéíñóúü¿¡", "el la los las de y que en un una es no por con para se del lo su como al"),
    "Portuguese": ("áâãàçéêíóôõúü", "o a os as de e que em um uma é não por com para se do da no na como"),
    "Italian": ("àèéìîòóùú", "il la lo i gli le di e che in un una è non per con si del come sono alle alla"),
    "Dutch": ("áéëèêïíóöúü", "de het een en van is in dat op te niet met voor zijn ik hoe wat aan"),
    "Swedish": ("åäöé", "och att det i en är som på av för med den till inte om hur vad var"),
    "Danish": ("æøåéä", "og at det i en er som på af for med den til ikke om hvad hvor jeg"),
    "Finnish": ("äöå", "ja on ei se että mitä oli hän kun mutta niin kuin missä"),
    "Icelandic": ("áéíóúýþæöð", "og að er í á sem ekki það til um hvað hvar við en"),
    "Polish": ("ąćęłńóśźż", "i w na z do nie się to jest że o jak co po za ile gdzie czy od dla"),
    "Czech": ("áčďéěíňóřšťúůýž", "a se na je v že do to s o z jak co kde po za pro si ale kdy"),
    "Slovak": ("áäčďéíĺľňóôŕšťúýž", "a sa na je v že do to s o z ako čo kde po za pre si ale kedy"),
    "Hungarian": ("áéíóöőúüű", "a az és hogy nem egy is van ez ha de meg mi hol kell volt csak mikor"),
    "Romanian": ("ăâîșțşţ", "și şi de la în nu o un este cu a pe care ce din pentru unde mai"),
    "Croatian": ("čćđšž", "i je u se na da za ne od što su kako s koji gdje to kada"),
    "Turkish": ("çğıöşüâîİ", "ve bir bu ne için de da ile mi var çok ama nasıl nerede kadar"),
    "Lithuanian": ("ąčęėįšųūž", "ir yra kad į iš su kaip tai ne bet apie kur kas prie"),
    "Latvian": ("āčēģīķļņšūž", "un ir ka no uz ar par kā tas bet kas kur pie vai"),
    "Estonian": ("äõöüšž", "ja on ei et see ta kui oli ka mis kus aga oma"),
}
_SIGNS = "“”‘’„‚«»‹›–—…€£°·•§©®™×÷±½¼¾²³ºª´µ¥¢†‰\u00a0"
_ALONE = "àáèéêíóôöøåæúâîûőį"
_IN_WORDS = "’‘–—…\u00a0"
_WORD = re.compile(r"[^\W\d_]+")
_MIN_SHARE = 0.97  # of the letters beyond ASCII that a language must account for
_MAX_ODD_SHARE = 0.3  # of all letters, where no frequent word shows the language
_MIN_LEAD = 2  # frequent words more than the next language's
_NEAR_CHAOS, _NEAR_COHERENCE = 0.02, 0.1
_SHOWN = 60


class Guess(NamedTuple):
    """An encoding, and the first distinctive line decoded with it."""

    encoding: str
    line: str


@dataclass(frozen=True, slots=True)
class _Fit:
    encoding: str
    text: str
    words: int
    share: float
    is_plain: bool = False


def guess_encoding(sample: bytes) -> list[Guess]:
    """The encodings that a text may be in, whole lines that hold bytes beyond ASCII: one where it is plain, several
    where they make as much sense, none where none does."""
    every = _latin(sample)
    fits = [fit for fit in every if fit.is_plain]
    if fits:
        best = fits[0]
        rivals = [fit for fit in fits[1:] if fit.text != best.text and best.words - fit.words < _MIN_LEAD]
        return [_guess(fit.encoding, fit.text) for fit in [best, *rivals]]
    return [*_others(sample), *(_guess(fit.encoding, fit.text) for fit in every)]


def _latin(sample: bytes) -> list[_Fit]:
    """The Latin encodings in which the text is of a language, the likeliest first."""
    fits = []
    for encoding in _LATIN:
        text = sample.decode(encoding, "replace")
        words = [word.lower() for word in _WORD.findall(text)]
        around = ((text[at - 1 : at], letter, text[at + 1 : at + 2]) for at, letter in enumerate(text))
        odd = Counter(letters for letters in around if letters[1] > "\x7f")
        every = [_fit(encoding, text, words, odd, language) for language in _LANGUAGES]
        best = max(every, key=lambda fit: (fit.share >= _MIN_SHARE, fit.words))
        if best.share >= _MIN_SHARE:
            plain = bool(best.words) or odd.total() < _MAX_ODD_SHARE * sum(map(len, words))
            fits.append(replace(best, is_plain=plain))
    return sorted(fits, key=lambda fit: -fit.words)


def _fit(encoding: str, text: str, words: list[str], odd: Counter[tuple[str, str, str]], language: str) -> _Fit:
    letters, frequent = _LANGUAGES[language]
    vocabulary = set(frequent.split())
    fitting = sum(times for around, times in odd.items() if _is_fitting(*around, letters))
    return _Fit(encoding, text, sum(word in vocabulary for word in words), fitting / max(odd.total(), 1))


def _is_fitting(before: str, letter: str, after: str, letters: str) -> bool:
    """Whether a letter stands as in words of the language: no sign within a word, no capital after a small
    letter, by itself only what is a word."""
    if letter.lower() in letters:
        if not letter.isalpha():
            return after.isalpha()
        if not before.isalpha() and not after.isalpha():
            return letter.lower() in _ALONE
        return not (letter.isupper() and before.islower()) and not (letter.islower() and after.isupper())
    return letter in _IN_WORDS or (letter in _SIGNS and not (before.isalpha() and after.isalpha()))


def _others(sample: bytes) -> list[Guess]:
    """The encodings of other scripts in which charset-normalizer sees text."""
    import charset_normalizer

    candidates = [encoding for encoding in NAMES if encoding not in _LATIN]
    matches = charset_normalizer.from_bytes(sample, cp_isolation=candidates)
    best = matches.best()
    if best is None:
        return []
    near = [
        match
        for match in matches
        if str(match) != str(best)
        and match.chaos <= best.chaos + _NEAR_CHAOS
        and match.coherence >= best.coherence - _NEAR_COHERENCE
    ]
    return [_guess(match.encoding, str(match)) for match in [best, *near]]


def _guess(encoding: str, text: str) -> Guess:
    line = next((line.strip() for line in text.splitlines() if not line.isascii()), "")
    at = next((at for at, letter in enumerate(line) if letter > "\x7f"), 0)
    return Guess(encoding, line[max(0, at - _SHOWN // 2) :][:_SHOWN])


MAX_ROW_CHARACTERS = 1 << 25  # characters of one line or row; a longer one is a bad row
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_ISO_2022_JP = re.compile(rb"\x1b\$[@B]")
_SOME_BROKEN = "Some bytes are not valid UTF-8; rows with such bytes are reported."
_MIN_BROKEN_SHARE = 10  # broken lines for each valid one, where the whole file may be in another encoding
_MAX_LINES = 20_000
_MAX_GUESSED = 1 << 13
_SAMPLE = 4096
_SEARCHED = 1 << 26
_BLOCK = 1 << 20


def search_encoding(path: Path, configured: str | None = None) -> tuple[str, list[str]]:
    """The encoding of a text file, and sentences on what was assumed.

    A byte order mark decides, and what is valid UTF-8 is that; else the one that is named counts. Without one it is
    UTF-8 also where single lines are broken; where hardly a line with more than ASCII is valid UTF-8, the text tells
    the encoding. Looks at the first 64 MiB. Raises StudioError where the file is not text, and where several encodings
    make sense, with what to do.
    """
    with open_bytes(path) as file:
        head = file.read(_SAMPLE)
        encoding, assumptions = _by_marks(head) or _by_validity(
            path.name, head, file, _codec(configured) if configured else None
        )
    if _looks_binary(head.decode(encoding, _errors(encoding))):
        raise StudioError("The file contains binary data, not text.", f"{KNOWN} Unpack archives first.")
    return encoding, assumptions


def _codec(name: str) -> str:
    """Python's name of a configured encoding. Raises StudioError for an unknown one."""
    try:
        encoding = codecs.lookup(name.strip()).name
        "a".encode(encoding)
    except (LookupError, ValueError):
        raise StudioError(f"Unknown encoding {name!r}.", f"Supported are utf-8 and {', '.join(NAMES)}.") from None
    return encoding


def _in_words(encoding: str) -> str:
    return NAMES.get(encoding.replace("-", "_"), encoding)


def _by_marks(head: bytes) -> tuple[str, list[str]] | None:
    if head.isascii() and _ISO_2022_JP.search(head):
        return "iso2022_jp_2", ["The file uses escape sequences and is read as ISO-2022-JP (Japanese)."]
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            name = encoding.removesuffix("-sig").upper()
            return encoding, [f"The file begins with a byte order mark and is read as {name}."]
    if head[1::2].count(0) > len(head) // 4:
        return "utf-16-le", ["Every second byte is zero: the file is read as UTF-16 (little endian)."]
    if head[::2].count(0) > len(head) // 4:
        return "utf-16-be", ["Every second byte is zero: the file is read as UTF-16 (big endian)."]
    return None


def _by_validity(name: str, head: bytes, stream: BinaryIO, configured: str | None) -> tuple[str, list[str]]:
    """UTF-8 or an older encoding, by the lines that hold more than ASCII."""
    block, read, valid, broken, size = head, 0, 0, list[bytes](), 0
    while block and valid + len(broken) < _MAX_LINES and read < _SEARCHED:
        block += stream.readline(_SEARCHED) if not block.endswith(b"\n") else b""
        read += len(block)
        if not block.isascii():
            for line in block.split(b"\n"):
                if line.isascii():
                    continue
                if _is_valid(line):
                    valid += 1
                else:
                    broken.append(line if size < _MAX_GUESSED else b"")
                    size += len(line)
        block = stream.read(_BLOCK)
    if not broken:
        other = valid and configured not in (None, "utf-8", "utf-8-sig")
        return "utf-8", [
            f"The file is valid UTF-8 and read as such, although data.encoding is {configured}."
        ] if other else []
    if configured:
        return configured, [f"The file is read as {_in_words(configured)}, as set in data.encoding."]
    if len(broken) < _MIN_BROKEN_SHARE * valid:
        return "utf-8", [_SOME_BROKEN]
    guesses = guess_encoding(_cut(b"\n".join(filter(None, broken))))
    if len(guesses) == 1:
        sentence = (
            f"The file is not UTF-8. It is read as {_in_words(guesses[0].encoding)}, detected from its characters."
        )
        return guesses[0].encoding, [f"{sentence} If the text looks wrong, set data.encoding."]
    if valid:
        return "utf-8", [_SOME_BROKEN]
    raise _unknown(name, guesses)


def _cut(sample: bytes) -> bytes:
    """The first part of a sample, ended where no character of several bytes can be cut."""
    if len(sample) <= _MAX_GUESSED:
        return sample
    cut = sample[:_MAX_GUESSED]
    end = max(cut.rfind(mark) for mark in (b"\n", b" ", b",", b'"'))
    return cut[: end + 1] if end > 0 else cut


def _unknown(name: str, guesses: list[Guess]) -> StudioError:
    """The error for an ambiguous encoding, with one line in each candidate."""
    lines = "".join(f"\n{guess.encoding}, {NAMES[guess.encoding]}: {guess.line}" for guess in guesses[:6])
    which = f"Candidates, with an example each:{lines}" if guesses else "No known encoding fits."
    return StudioError(
        f"{name} is not UTF-8, and its encoding is uncertain. {which}",
        "Set data.encoding (--data.encoding in the terminal, --encoding for inspect), for example "
        f"{guesses[0].encoding if guesses else 'cp1252'}. Or save the file as UTF-8.",
    )


def open_text(path: Path, encoding: str, newline: str | None = None) -> TextIO:
    """A file as characters; bytes that have no meaning stay in it as marks that `is_broken` finds row by row."""
    return io.TextIOWrapper(open_bytes(path), encoding, _errors(encoding), newline)


def lines_of(stream: TextIO) -> Iterator[tuple[int, str, bool]]:
    """Line number, line, and whether it is whole: what is longer than `MAX_ROW_CHARACTERS` is cut."""
    number = 0
    while line := stream.readline(MAX_ROW_CHARACTERS):
        number += 1
        whole = len(line) < MAX_ROW_CHARACTERS or line.endswith("\n")
        tail = line
        while not whole and tail and not tail.endswith("\n"):
            tail = stream.readline(MAX_ROW_CHARACTERS)
        yield number, line.lstrip("\ufeff") if number == 1 else line, whole


def _errors(encoding: str) -> str:
    return "replace" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"


def _is_valid(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _looks_binary(text: str) -> bool:
    """Whether more than a tenth of the first characters are control characters or undecodable."""
    odd = sum(1 for letter in text if (letter < " " and letter not in "\t\n\r\f\x1b") or is_broken(letter))
    return odd * 10 > len(text) + 10
