"""Numbers with their units, and text that is safe to show: for the page, the terminal and reports alike."""

import html
import math
import unicodedata

GIB = 1024**3
JOINERS = "\u200c\u200d"  # invisible, but Persian, Hindi and emoji are written with them
TEMPLATE = str.maketrans({"$": "&#36;", "{": "&#123;", "`": "&#96;"})  # gr.HTML runs what stands in ${...}


def escape(value: object) -> str:
    """Text that neither HTML nor Gradio's templates read as anything else, and in which nothing hides."""
    return html.escape(visible(str(value)), quote=True).translate(TEMPLATE)


def visible(text: str) -> str:
    """Control characters and marks that turn the reading direction as ⟨U+202E⟩; line feeds and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"⟨U+{ord(char):04X}⟩" if _hidden(char) else char for char in text)


def _hidden(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in "\n\t" and char not in JOINERS


def kind_of(value: object) -> str:
    """What a value of JSON or YAML is called: an object, a list, a text, a number."""
    if value is None:
        return "nothing"
    if isinstance(value, int | float):
        return "true or false" if isinstance(value, bool) else "a number"
    if isinstance(value, str):
        return "a text"
    return "an object" if isinstance(value, dict) else "a list"


def number(value: float) -> str:
    """12345.0 as 12,345; a fraction keeps one decimal."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def figure(value: float | None) -> str:
    """A measured number with four digits: 0.01234, 2.5e-05, 12,345."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return {"nan": "not a number"}.get(str(value), "infinite")
    if value == 0 or 1e-4 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.2e}"


def float_text(value: float) -> str:
    """As people write it: 2e-4, 0.05, 3, 1e-5."""
    short = f"{value:.10g}"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return short
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):.10g}e{int(exponent)}"


def percent(part: float, whole: float) -> str:
    """A share that says 0 % and 100 % only where it is exactly that."""
    if whole <= 0 or part <= 0:
        return "0 %"
    share = 100 * part / whole
    if share < 0.1:
        return "< 0.1 %"
    if share > 99.9 and part < whole:
        return "> 99.9 %"
    return f"{share:.1f} %".replace(".0 %", " %")


def duration(seconds: float) -> str:
    """0.12 s, 4.1 s, 41 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for large, name, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def size(octets: float) -> str:
    """Bytes as kB, MB, GB or TB (powers of 1,000, as drives and downloads are counted)."""
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1000:
            return f"{octets:.0f} {unit}" if octets >= 10 or unit == "B" else f"{octets:.1f} {unit}"
        octets /= 1000
    return f"{octets:.1f} TB"


def dollars(amount: float) -> str:
    """$0.80, $12.50; of less than ten cents as much as there is: $0.0042."""
    return f"${amount:,.2f}" if amount >= 0.1 else f"${amount:.4f}".rstrip("0").removesuffix(".")


def gib(octets: float) -> str:
    """An amount of memory as it is compared: 4 MiB, 0.42 GiB, 1.4 GiB, 123 GiB."""
    value = octets / GIB
    if value < 0.1:
        return f"{octets / 1024**2:.0f} MiB"
    return f"{value:,.0f} GiB" if value >= 100 else f"{value:.1f} GiB" if value >= 1 else f"{value:.2f} GiB"


def shorten(text: str, longest: int) -> str:
    """One line of at most `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def count(value: int, noun: str) -> str:
    """1 row, 12,345 rows."""
    return f"{value:,} {noun if value == 1 else noun + 's'}"
