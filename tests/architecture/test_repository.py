"""The rules of the house, on every file. What each rule finds is tested in test_checks.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import checks
from .checks import Source

ROOT = Path(__file__).parents[2]
NATIVE_SUFFIXES = frozenset({".cc", ".h", ".cpp", ".hpp"})
TEXT_SUFFIXES = NATIVE_SUFFIXES | {
    ".py",
    ".pyi",
    ".md",
    ".toml",
    ".txt",
    ".sh",
    ".json",
    ".yml",
    ".svg",
    ".cmake",
    "",
}


def _own_files() -> list[Path]:
    """Files that git tracks or would track; every file outside the built ones where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
        return sorted(path for path in paths if path.is_file())
    built = {".venv", ".venv-llama", ".venv-oracle", "build", "dist", "__pycache__", ".git"}
    return sorted(p for p in ROOT.rglob("*") if p.is_file() and not built & set(p.relative_to(ROOT).parts))


def _sources(*folders: str) -> list[Source]:
    found = []
    for path in _own_files():
        relative = path.relative_to(ROOT)
        if path.suffix == ".py" and relative.parts[0] in folders:
            parts = relative.with_suffix("").parts
            module = ".".join(parts[1:] if parts[0] == "src" else parts)
            found.append(
                Source(str(relative), module.removesuffix(".__init__"), path.read_text(encoding="utf-8"))
            )
    assert found, f"no Python files under {folders}"
    return found


def _violations(check: Callable[[Source], list[str]], *folders: str) -> str:
    return "\n".join(line for source in _sources(*folders) for line in check(source))


@pytest.mark.parametrize(
    "check",
    [
        checks.check_import_directions,
        checks.check_function_lengths,
        checks.check_module_state,
        checks.check_excepts,
        checks.check_determinism,
        checks.check_docstrings,
        checks.check_names,
    ],
    ids=lambda check: check.__name__,
)
def test_source_keeps_the_rule(check: Callable[[Source], list[str]]) -> None:
    assert _violations(check, "src") == ""


@pytest.mark.parametrize(
    "check", [checks.check_excepts, checks.check_names], ids=lambda check: check.__name__
)
def test_tests_and_benchmarks_keep_the_rule(check: Callable[[Source], list[str]]) -> None:
    assert _violations(check, "tests", "bench") == ""


def test_the_waist_needs_only_the_standard_library() -> None:
    found = [
        line
        for source in _sources("src")
        if source.package == "api"
        for line in checks.check_standard_library_only(source, frozenset(sys.stdlib_module_names))
    ]
    assert found == []


def test_no_file_is_too_long() -> None:
    found = [
        line
        for path in _own_files()
        if path.suffix in NATIVE_SUFFIXES | {".py"}
        for line in checks.check_file_length(
            str(path.relative_to(ROOT)), path.read_text(encoding="utf-8", errors="replace")
        )
    ]
    assert found == []


def test_no_file_names_the_machine_it_was_written_on() -> None:
    found = [
        line
        for path in _own_files()
        if path.suffix in TEXT_SUFFIXES and path.stat().st_size < 1_000_000
        for line in checks.check_machine_paths(
            str(path.relative_to(ROOT)), path.read_text(encoding="utf-8", errors="replace")
        )
    ]
    assert found == []


def test_the_table_of_imports_names_only_what_exists() -> None:
    """A package that is gone leaves the table too, and the table has no circle."""
    existing = {source.package for source in _sources("src")} | {"_native"}
    assert set(checks.ALLOWED_IMPORTS) <= existing
    for package, allowed in checks.ALLOWED_IMPORTS.items():
        assert package not in allowed
        for below in allowed & checks.ALLOWED_IMPORTS.keys():
            assert package not in checks.ALLOWED_IMPORTS[below], f"{package} and {below} import each other"
