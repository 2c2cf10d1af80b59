"""Each rule finds a violation that is planted in a small source, and lets the lawful neighbour through."""

from __future__ import annotations

import pytest

from . import checks
from .checks import Source


def _source(text: str, module: str = "stoker.engine.sample") -> Source:
    return Source(f"src/{module.replace('.', '/')}.py", module, text)


@pytest.mark.parametrize(
    ("module", "text", "finds"),
    [
        ("stoker.cache.blocks", "from stoker.engine.engine import Engine", "cache may not import engine"),
        ("stoker.cache.blocks", "def f():\n    import stoker.llm", "cache may not import llm"),
        ("stoker.cache.blocks", "from ..engine import Engine", "cache may not import engine"),
        ("stoker.cache.blocks", "import torch", "torch may not be imported"),
        ("stoker.engine.runner", "import rich.progress", "rich may not be imported"),
        ("stoker.strange.thing", "", "not in the table"),
        ("stoker.engine.runner", "from stoker.cache.blocks import BlockPool\nimport numpy as np", ""),
        ("stoker.cli.run", "import typer\nfrom .output import out\nfrom stoker import __version__", ""),
        ("stoker.cache.blocks", "from .tree import Tree\nfrom ..api.errors import CapacityError", ""),
    ],
)
def test_import_directions(module: str, text: str, finds: str) -> None:
    found = "\n".join(checks.check_import_directions(_source(text, module)))
    assert (finds in found) if finds else (found == "")


def test_relative_imports_in_a_package_are_resolved_from_the_package() -> None:
    source = Source("src/stoker/cache/__init__.py", "stoker.cache", "from ..engine import Engine")
    assert "cache may not import engine" in checks.check_import_directions(source)[0]


def test_standard_library_only() -> None:
    known = frozenset({"dataclasses", "__future__"})
    lawful = _source(
        "from dataclasses import dataclass\nfrom stoker.api.errors import StokerError", "stoker.api.x"
    )
    assert checks.check_standard_library_only(lawful, known) == []
    assert len(checks.check_standard_library_only(_source("import numpy", "stoker.api.x"), known)) == 1
    assert (
        len(checks.check_standard_library_only(_source("import stoker.engine", "stoker.api.x"), known)) == 1
    )


def test_file_length() -> None:
    assert checks.check_file_length("a.cc", "x\n" * 600) == []
    assert checks.check_file_length("a.cc", "x\n" * 601) == ["a.cc: 601 lines, at most 600"]


def test_function_length_counts_methods_and_inner_functions() -> None:
    lines = "\n".join(["        x = 1"] * 60)
    assert len(checks.check_function_lengths(_source(f"class A:\n    def f(self):\n{lines}"))) == 1
    lines = "\n".join(["        x = 1"] * 59)
    assert checks.check_function_lengths(_source(f"class A:\n    def f(self):\n{lines}")) == []


@pytest.mark.parametrize(
    "text",
    [
        "CACHE = {}",
        "seen = []",
        "if True:\n    NAMES = {'a'}",
        "try:\n    A = 1\nexcept ValueError:\n    A = []",
        "TABLE: dict[str, int] = {'a': 1}",
        "from collections import deque\nQUEUE = deque()",
        "import itertools\nids = itertools.count()",
        "class A:\n    shared = []",
        "def f():\n    global x\n    x = 1",
        "SQUARES = [n * n for n in range(3)]",
    ],
)
def test_module_state_is_found(text: str) -> None:
    assert len(checks.check_module_state(_source(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "__all__ = ['a']",
        "A = ('a', 'b')",
        "A = frozenset({'a'})",
        "from types import MappingProxyType\nA = MappingProxyType({'a': 1})",
        "from collections.abc import Mapping\nA: Mapping[str, int] = {'a': 1}",
        "from typing import Final\nfrom collections.abc import Sequence\nA: Final[Sequence[int]] = [1]",
        "def f():\n    a = []\n    return a",
        "class A:\n    __slots__ = ['x']",
    ],
)
def test_read_only_tables_are_lawful(text: str) -> None:
    assert checks.check_module_state(_source(text)) == []


def test_excepts() -> None:
    assert "bare" in checks.check_excepts(_source("try:\n    f()\nexcept:\n    raise"))[0]
    assert "silent" in checks.check_excepts(_source("try:\n    f()\nexcept OSError:\n    pass"))[0]
    assert "silent" in checks.check_excepts(_source("try:\n    f()\nexcept OSError:\n    ..."))[0]
    assert (
        checks.check_excepts(_source("try:\n    f()\nexcept OSError as error:\n    raise E from error")) == []
    )


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "from datetime import datetime",
        "import random",
        "def f(x):\n    return hash(x)",
        "import numpy as np\nx = np.random.default_rng()",
        "import os\nx = os.urandom(8)",
    ],
)
def test_clocks_and_chance_are_found_where_decisions_are_made(text: str) -> None:
    assert len(checks.check_determinism(_source(text))) == 1
    assert checks.check_determinism(_source(text, "stoker.cli.run")) == []


def test_keyed_noise_is_lawful() -> None:
    assert checks.check_determinism(_source("from .noise import philox\nx = philox(seed, position)")) == []


def test_docstrings() -> None:
    found = checks.check_docstrings(
        _source('"""Module."""\ndef f(): ...\nclass A:\n    """A."""\n    def g(self): ...')
    )
    assert [line.split(": ", 1)[1] for line in found] == ["f has no docstring", "g has no docstring"]
    assert "no docstring" in checks.check_docstrings(_source("x = 1"))[0]
    lawful = '"""Module."""\ndef _f(): ...\ndef g():\n    """G."""\n    def inner(): ...\n'
    assert checks.check_docstrings(_source(lawful)) == []


@pytest.mark.parametrize(
    "text", ["class BlockManager: ...", "def load_helper(): ...", "util = 1", "def f(utils): ..."]
)
def test_empty_names_are_found(text: str) -> None:
    assert len(checks.check_names(_source(text))) == 1


def test_empty_file_names_are_found_and_utilisation_is_a_word() -> None:
    assert len(checks.check_names(_source("", "stoker.engine.utils"))) == 1
    assert checks.check_names(_source("utilisation = 0.5")) == []


@pytest.mark.parametrize("folder", ["root", "home", "Users", "tmp"])
def test_machine_paths_are_found(folder: str) -> None:
    assert len(checks.check_machine_paths("a.md", f"see\n/{folder}/somebody/model.gguf")) == 1


def test_addresses_and_home_relative_paths_are_lawful() -> None:
    text = "https://example.org/home/page ~/.cache/stoker build/tmp/x $HOME/work/x src/home/y"
    assert checks.check_machine_paths("a.md", text) == []
