"""README, CONTRIBUTING and docs/ agree with the code: generated parts, links, commands, files and what they claim."""

import argparse
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lora_studio.cli import make_parser, with_values
from lora_studio.ui.docs import PAGE_OF_TAB, anchor
from tests import readme

PAGES = sorted(readme.DOCS.rglob("*.md"))
DOCUMENTS = [readme.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + PAGES
TEXT = (readme.ROOT / "README.md").read_text(encoding="utf-8")
MAX_README_BYTES = 12_000
MAX_IMAGE_BYTES, MAX_MOVING_BYTES = 150_000, 3_000_000


def name_of(path: Path) -> str:
    return path.relative_to(readme.ROOT).as_posix()


every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


@pytest.mark.parametrize("part", readme.PARTS)
def test_a_generated_part_describes_the_code_as_it_is(part: str) -> None:
    page, make = readme.PARTS[part]
    written = readme.part_of((readme.DOCS / page).read_text(encoding="utf-8"), part)
    assert written.strip() == make().strip(), "run `python -m tests.readme`"


def test_the_readme_is_short_and_its_pictures_are_small() -> None:
    assert len(TEXT.encode()) < MAX_README_BYTES
    for path in (readme.DOCS / "images").iterdir():
        assert path.stat().st_size <= (MAX_MOVING_BYTES if path.stem == "tour" else MAX_IMAGE_BYTES), path.name


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def headings_of(path: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@every_document
def test_every_link_leads_to_a_file_and_a_heading_that_exist(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8")))
    broken = []
    for link in links:
        place, _, heading = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (path.parent / place).resolve() if place else path
        if not target.exists() or (heading and heading not in headings_of(target)):
            broken.append(link)
    assert not broken


_CALL = re.compile(r"(?:\w+=\S* )*(?:\S*python3? -m lora_studio|lora-studio) ([a-z].*)")


def commands_in(text: str) -> list[list[str]]:
    """The words of every `lora-studio` or `python -m lora_studio` command, in fenced code or in a sentence."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))
    return [shlex.split(call[1], comments=True) for line in lines if (call := _CALL.match(line))]


@every_document
def test_every_command_of_the_terminal_is_one_that_it_takes(path: Path) -> None:
    for words in commands_in(path.read_text(encoding="utf-8")):
        parser = make_parser(words)
        try:
            args, unknown = parser.parse_known_args(with_values(parser, words))
        except (SystemExit, argparse.ArgumentError) as error:
            raise AssertionError(f"lora-studio {shlex.join(words)}") from error
        assert not unknown, f"lora-studio {shlex.join(words)}: {unknown}"
        assert args.command


def test_the_documents_hold_commands_to_check() -> None:
    assert sum(len(commands_in(path.read_text(encoding="utf-8"))) for path in DOCUMENTS) > 30


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (readme.ROOT / "Makefile").read_text(encoding="utf-8")
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"run", "test", "demo", "check", "docs"} <= named
    assert not [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


@every_document
def test_every_file_and_test_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:tests|benchmarks|tools|presets|lora_studio)/[\w./-]+\.\w+)(?:::\w+)?`", text))
    assert not [file for file in files if not (readme.ROOT / file).exists()]
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text):
        assert f"def {test}(" in (readme.ROOT / file).read_text(encoding="utf-8"), test
    for module in re.findall(r"python -m ((?:benchmarks|tools|tests)\.[\w.]*\w)", text):
        assert (readme.ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_documents_name_no_path_of_one_machine() -> None:
    documents = [*DOCUMENTS, readme.ROOT / "Makefile", readme.ROOT / "requirements.txt"]
    own = re.compile(r"(?<![\w.~$}])/(?:work|root|tmp)/|/home/(?!studio)")
    assert not [name_of(path) for path in documents if own.search(path.read_text(encoding="utf-8"))]


def test_every_requirement_is_pinned_and_says_why() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (readme.ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                assert re.fullmatch(r"[A-Za-z0-9_-]+==[0-9.]+ +# .+", line), f"{Path(name).name}: {line}"


def nav_of(items: list[object]) -> list[str]:
    """The pages in mkdocs.yml's navigation."""
    pages: list[str] = []
    for item in items:
        for value in item.values() if isinstance(item, dict) else [item]:
            pages += nav_of(value) if isinstance(value, list) else [str(value)]
    return pages


def test_every_page_is_in_the_navigation_and_in_the_contents_of_the_first_page() -> None:
    settings = yaml.safe_load((readme.ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {path.relative_to(readme.DOCS).as_posix() for path in PAGES}
    contents = (readme.DOCS / "index.md").read_text(encoding="utf-8").partition("## Contents\n")[2]
    assert set(nav_of(settings["nav"])) == pages
    assert set(re.findall(r"\]\(([^)#]+)\)", contents)) == pages - {"index.md"}
    assert {f"{page}.md" for page in PAGE_OF_TAB.values()} <= pages


@pytest.mark.slow
def test_mkdocs_builds_the_pages_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=readme.ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "settings" / "index.html").is_file()


def rows_of(path: Path) -> list[list[str]]:
    """The cells of the first table on a page, without its head."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(("|", "## "))]
    table = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


def test_every_promise_of_security_and_every_claim_about_the_studio_names_what_keeps_it() -> None:
    promises, claims = rows_of(readme.DOCS / "security.md"), rows_of(readme.DOCS / "compared.md")
    assert len(promises) > 10
    assert not [promise for promise, *tests in promises if "`tests/" not in "".join(tests)]
    assert len(claims) > 10
    assert not [row[0] for row in claims if row[1] != "no" and not re.search(r"`(tests|benchmarks)/", row[1])]


MAX_MODULES = {"upload": 30, "event": 14, "question": 14, "setting": 14}
"""Modules on each of the four walks through the code that CONTRIBUTING draws."""


@pytest.mark.parametrize("walk", MAX_MODULES)
def test_a_walk_through_the_code_names_few_modules_and_all_exist(walk: str) -> None:
    text = (readme.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walks = text.partition("<!-- walks -->")[2].partition("<!-- /walks -->")[0].split("\n- ")[1:]
    named = [re.findall(r"`([a-z_.]+)`", line) for line in walks if walk in line.partition("**:")[0].lower()]
    assert len(walks) == len(MAX_MODULES)
    assert len(named) == 1
    assert 5 < len(named[0]) <= MAX_MODULES[walk]
    paths = [readme.ROOT / "lora_studio" / f"{name.replace('.', '/')}.py" for name in named[0]]
    assert not [path for path in paths if not path.is_file()]


def test_every_package_is_on_the_map() -> None:
    text = (readme.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (readme.ROOT / "lora_studio").glob("*/__init__.py")}
    assert packages == set(re.findall(r"^\| `([a-z]+)`", text, re.MULTILINE)) | {"runs", "evaluate", "export", "chat"}
