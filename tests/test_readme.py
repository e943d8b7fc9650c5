"""What the README says of the code is what the code is."""

import itertools
import re
from pathlib import Path

import pytest

from tests import readme

TEXT = (readme.ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", readme.PARTS)
def test_the_readme_describes_the_code_as_it_is(part: str) -> None:
    written = TEXT.partition(f"<!-- {part} -->")[2].partition(f"<!-- /{part} -->")[0].strip()
    assert written == readme.PARTS[part]().strip(), "run `python -m tests.readme`"


def test_every_make_target_that_the_readme_names_exists() -> None:
    makefile = (readme.ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE))
    assert {"run", "test", "demo", "check"} <= named
    assert not [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_every_file_that_the_readme_links_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    assert not [link for link in links if not (readme.ROOT / link).exists()]


def test_every_test_that_the_readme_names_is_in_the_file_that_it_links() -> None:
    named = re.findall(r"`(test_\w+)`\]\(([^)]+)\)", TEXT)
    assert named
    assert not [name for name, file in named if f"def {name}(" not in (readme.ROOT / file).read_text(encoding="utf-8")]


def test_documents_name_no_path_of_one_machine() -> None:
    documents = [readme.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "requirements.txt")]
    assert not [path.name for path in documents if re.search(r"/(work|root|home|tmp)/", path.read_text())]


def test_every_requirement_is_pinned_and_says_why() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (readme.ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                assert re.fullmatch(r"[A-Za-z0-9_-]+==[0-9.]+ +# .+", line), f"{Path(name).name}: {line}"


def test_every_test_file_that_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)`", TEXT)
    assert named
    assert not [file for file in named if not (readme.ROOT / file).exists()]


def rows_of(section: str) -> list[list[str]]:
    """The cells of the first table in a section, without its head."""
    lines = [line for line in TEXT.partition(f"\n## {section}\n")[2].splitlines() if line.startswith(("|", "## "))]
    table = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


def test_every_promise_of_security_and_every_claim_about_the_studio_names_what_keeps_it() -> None:
    promises, claims = rows_of("Security"), rows_of("Compared with")
    assert len(promises) > 10
    assert not [promise for promise, *kept in promises if "`tests/" not in "".join(kept)]
    assert len(claims) > 10
    assert not [row[0] for row in claims if row[1] != "no" and not re.search(r"\]\((tests|benchmarks)/", row[1])]


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
