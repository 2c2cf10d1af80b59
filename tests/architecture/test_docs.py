"""The generated pages say what the code says: every command, option, variable and error is in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
from scripts.write_reference import cli_reference, error_classes, errors_reference

from stoker.cli.app import build_app

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize(
    ("page", "written"), [("cli.md", cli_reference), ("errors.md", errors_reference)], ids=["cli", "errors"]
)
def test_the_page_is_what_make_docs_writes(page: str, written) -> None:
    assert (REFERENCE / page).read_text(encoding="utf-8") == written(), "run `make docs`"


def test_every_option_and_its_variable_is_in_the_reference() -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    app = typer.main.get_command(build_app())
    assert len(app.commands) >= 6
    for name, command in app.commands.items():
        section = page.partition(f"## stoker {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                for option in [*parameter.opts, *parameter.secondary_opts]:
                    assert f"`{option}`" in section, f"stoker {name} {option}"
                if parameter.envvar:
                    assert f"`{parameter.envvar}`" in section


def test_every_error_is_in_the_reference() -> None:
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    assert len(error_classes()) >= 8
    for error in error_classes():
        assert f"| `{error.__name__}` |" in page


def test_every_page_is_in_the_list_of_pages() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page != "README.md" and f"({page})" not in index] == []


def test_every_variable_that_the_code_reads_is_in_the_reference() -> None:
    """Names that start with STOKER_, wherever they stand in Python or C++."""
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "native").rglob("*.cc")]
    names = {name for file in files for name in re.findall(r'"(STOKER_[A-Z_]+)"', file.read_text("utf-8"))}
    assert len(names) > 10
    assert sorted(name for name in names if f"`{name}`" not in page) == []


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
