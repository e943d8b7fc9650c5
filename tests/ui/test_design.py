"""The style sheets keep to the design's tokens, so that the page stays one page whoever draws the next part of it."""

import re

import pytest

from lora_studio.ui import theme

DECLARATION = re.compile(r"([\w-]+)\s*:\s*([^;{}]+);")
SHEETS = [pytest.param(path, id=path.name) for path in theme.STYLES]


def declarations(path, *names):
    """Every value of the named properties, without the tokens' own definitions."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [(name, value.strip()) for name, value in DECLARATION.findall(text) if name in names]


@pytest.mark.parametrize("path", SHEETS)
def test_type_has_four_sizes(path):
    allowed = {f"var(--text-{size})" for size in ("small", "body", "title", "head")} | {"inherit", "0", "0 !important"}
    assert {value for _, value in declarations(path, "font-size")} <= allowed


@pytest.mark.parametrize("path", SHEETS)
def test_corners_have_one_radius(path):
    allowed = re.compile(r"(var\(--radius\)|0|50%|inherit)( |$|!important)*")
    assert [value for _, value in declarations(path, "border-radius") if not allowed.match(value)] == []


@pytest.mark.parametrize("path", SHEETS)
def test_distances_are_multiples_of_four(path):
    """Up to two pixels may align what stands in a line of text."""
    odd = []
    for name, value in declarations(path, "padding", "margin", "gap", "padding-top", "padding-left", "margin-top"):
        sizes = [abs(int(size)) for size in re.findall(r"(-?\d+)px", value)]
        odd += [f"{name}: {value}" for size in sizes if size > 2 and size % 4]
    assert odd == []


@pytest.mark.parametrize("path", SHEETS)
def test_colours_are_named(path):
    """A colour stands in the list of tokens, once for light and once for dark, and nowhere else."""
    text = path.read_text(encoding="utf-8")
    used = [line.strip() for line in text.splitlines() if re.search(r"#[0-9a-fA-F]{3,8}\b(?=[;\s])", line)]
    assert [line for line in used if not line.startswith("--") and "{ --" not in line] == []


def test_teal_is_the_primary_buttons_alone():
    teal = "#137a72"
    places = [
        (path.name, line.strip()) for path in theme.STYLES for line in path.read_text().splitlines() if teal in line
    ]
    assert [place for place, _ in places] == ["studio.css"]
    colours = {name: value for name, value in vars(theme.theme()).items() if value == teal}
    assert set(colours) == {"button_primary_background_fill", "button_primary_background_fill_dark"}
