"""Which encoding older than UTF-8 a text is in: by the letters of its language where these are Latin, else by
charset-normalizer. Where two encodings make sense, nothing is chosen.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

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
    """An encoding and what the text's first telling line is in it."""

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
    known = set(frequent.split())
    fitting = sum(times for around, times in odd.items() if _is_fitting(*around, letters))
    return _Fit(encoding, text, sum(word in known for word in words), fitting / max(odd.total(), 1))


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

    others = [encoding for encoding in NAMES if encoding not in _LATIN]
    found = charset_normalizer.from_bytes(sample, cp_isolation=others)
    best = found.best()
    if best is None:
        return []
    near = [
        match
        for match in found
        if str(match) != str(best)
        and match.chaos <= best.chaos + _NEAR_CHAOS
        and match.coherence >= best.coherence - _NEAR_COHERENCE
    ]
    return [_guess(match.encoding, str(match)) for match in [best, *near]]


def _guess(encoding: str, text: str) -> Guess:
    line = next((line.strip() for line in text.splitlines() if not line.isascii()), "")
    at = next((at for at, letter in enumerate(line) if letter > "\x7f"), 0)
    return Guess(encoding, line[max(0, at - _SHOWN // 2) :][:_SHOWN])
