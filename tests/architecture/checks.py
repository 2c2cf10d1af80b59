"""The rules of the house as functions from source text to a list of violations. Standard library only.

Each takes a `Source`, so that `test_checks.py` can plant a violation in a few lines and see it found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

MOST_LINES_OF_FILE = 600
MOST_LINES_OF_FUNCTION = 60

# Who may import whom inside the package. Modules directly under stoker/ are listed by their own name.
# `_native` is the compiled module.
ALLOWED_IMPORTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "api": frozenset(),
        "kernels": frozenset({"api", "_native"}),
        "weights": frozenset({"api", "kernels", "_native"}),
        "models": frozenset({"api", "kernels", "weights", "_native"}),
        "tokenizer": frozenset({"api", "kernels", "weights"}),
        "cache": frozenset({"api", "kernels", "_native"}),
        "sampling": frozenset({"api", "kernels", "_native"}),
        "grammar": frozenset({"api", "kernels", "weights", "tokenizer"}),
        # Draft heads and draft models are models of their own, read from files of their own; what they keep
        # of a sequence lies in blocks of the cache.
        "speculation": frozenset({"api", "kernels", "weights", "models", "cache", "sampling", "_native"}),
        "engine": frozenset(
            {
                "api",
                "kernels",
                "weights",
                "models",
                "tokenizer",
                "cache",
                "sampling",
                "grammar",
                "speculation",
            }
        ),
        # Local engines in processes of their own; implements Endpoint, so it stands below the waist.
        "process": frozenset(
            {
                "api",
                "kernels",
                "weights",
                "models",
                "tokenizer",
                "cache",
                "sampling",
                "grammar",
                "speculation",
                "engine",
            }
        ),
        # Above the waist: only Endpoint, Request, Event.
        "telemetry": frozenset({"api"}),
        "tools": frozenset({"api"}),  # what models write when they call tools; text only
        "state": frozenset({"api"}),  # what outlives the server, in a database
        "server": frozenset({"api", "telemetry", "tools", "state"}),
        "llm": frozenset(
            {
                "api",
                "kernels",
                "weights",
                "models",
                "tokenizer",
                "cache",
                "sampling",
                "grammar",
                "speculation",
                "engine",
            }
        ),
        "bench": frozenset(
            {
                "api",
                "kernels",
                "weights",
                "models",
                "tokenizer",
                "cache",
                "sampling",
                "grammar",
                "speculation",
                "engine",
                "llm",
                "_native",
            }
        ),
        # Makes draft heads: a tool beside the stack, which alone may use torch.
        "training": frozenset(
            {
                "api",
                "kernels",
                "weights",
                "models",
                "tokenizer",
                "sampling",
                "speculation",
                "engine",
                "_native",
            }
        ),
        "cli": frozenset(
            {
                "training",
                "api",
                "kernels",
                "weights",
                "models",
                "tokenizer",
                "cache",
                "sampling",
                "grammar",
                "speculation",
                "engine",
                "llm",
                "bench",
                "process",
                "telemetry",
                "state",
                "server",
            }
        ),
        "__main__": frozenset({"cli"}),
        "__init__": frozenset({"api", "sampling", "llm"}),
    }
)

# weights and kernels know each other in one direction each: the reader of files knows the packed layouts,
# the kernels never hear of a file. Third-party packages are confined to the packages that need them.
CONFINED_PACKAGES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "torch": frozenset({"training"}),
        "triton": frozenset(),
        "ray": frozenset(),
        "transformers": frozenset(),
        "gguf": frozenset({"training"}),
        "typer": frozenset({"cli"}),
        "click": frozenset(),
        "rich": frozenset({"cli"}),
        "jinja2": frozenset({"tokenizer"}),
        "tokenizers": frozenset({"tokenizer"}),
        "zmq": frozenset({"process"}),
        "msgspec": frozenset({"process", "server"}),
        "fastapi": frozenset({"server"}),
        "starlette": frozenset({"server"}),
        "pydantic": frozenset({"server"}),
        "uvicorn": frozenset({"server"}),
        "prometheus_client": frozenset({"telemetry"}),
        "opentelemetry": frozenset({"telemetry"}),
        "httpx": frozenset({"bench"}),
        "llguidance": frozenset({"grammar"}),
        "sqlalchemy": frozenset({"state"}),
        "alembic": frozenset({"state"}),
        "psycopg": frozenset({"state"}),
    }
)

# Here a decision is made that must be the same when it is replayed.
DECISION_PACKAGES = frozenset({"kernels", "models", "cache", "sampling", "grammar", "speculation", "engine"})
CLOCKS_AND_CHANCE = frozenset({"time", "datetime", "random", "secrets", "uuid"})

FORBIDDEN_WORDS = frozenset({"manager", "managers", "helper", "helpers", "util", "utils"})

_MUTABLE_LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
_MUTABLE_CALLS = frozenset(
    {
        "list",
        "dict",
        "set",
        "bytearray",
        "deque",
        "defaultdict",
        "OrderedDict",
        "Counter",
        "count",
        "ContextVar",
    }
)
# An annotation that lets the type checker refuse every write.
_READ_ONLY_ANNOTATION = re.compile(r"\b(Mapping|Sequence|AbstractSet|Collection)\b")


@dataclass(frozen=True)
class Source:
    """One Python file: `path` relative to the repository, `module` as in "stoker.cache.blocks", its text."""

    path: str
    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.path)

    @property
    def package(self) -> str:
        """The second part of the module's name: the package, or the module itself directly under stoker/."""
        parts = self.module.split(".")
        return parts[1] if len(parts) > 1 else "__init__"


def _nodes(source: Source, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
    return (node for node in ast.walk(source.tree) if isinstance(node, kinds))


def _says(source: Source, node: ast.AST, text: str) -> str:
    return f"{source.path}:{getattr(node, 'lineno', 1)}: {text}"


def imported_modules(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Every import, wherever it stands, as (node, absolute dotted name); `from a import b` gives a.b."""
    is_package = source.path.endswith("__init__.py")
    for node in _nodes(source, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
            continue
        assert isinstance(node, ast.ImportFrom)
        base = node.module or ""
        if node.level:
            above = source.module.split(".")
            above = above[: len(above) - node.level + (1 if is_package else 0)]
            base = ".".join([*above, base]).rstrip(".")
        for alias in node.names:
            yield node, f"{base}.{alias.name}"


def check_import_directions(source: Source) -> list[str]:
    """Imports inside the package run only downward; third-party packages stay where they belong."""
    if source.package not in ALLOWED_IMPORTS:
        return [f"{source.path}: package {source.package!r} is not in the table ALLOWED_IMPORTS"]
    allowed = ALLOWED_IMPORTS[source.package] | {source.package}
    found = []
    for node, name in imported_modules(source):
        parts = name.split(".")
        if parts[0] == "stoker":
            target = parts[1] if len(parts) > 1 else ""
            if target not in allowed and target not in {"", "__version__"}:
                found.append(_says(source, node, f"{source.package} may not import {target}"))
        elif source.package not in CONFINED_PACKAGES.get(parts[0], frozenset({source.package})):
            found.append(_says(source, node, f"{parts[0]} may not be imported in {source.package}"))
    return found


def check_standard_library_only(source: Source, standard_modules: frozenset[str]) -> list[str]:
    """The waist (`api`) imports nothing but itself and the standard library."""
    return [
        _says(source, node, f"{name} is not in the standard library")
        for node, name in imported_modules(source)
        if name.split(".")[0] not in standard_modules and not name.startswith("stoker.api")
    ]


def check_file_length(path: str, text: str) -> list[str]:
    """No file of ours, Python or C++, is longer than 600 lines."""
    lines = text.count("\n")
    return [f"{path}: {lines} lines, at most {MOST_LINES_OF_FILE}"] if lines > MOST_LINES_OF_FILE else []


def check_function_lengths(source: Source) -> list[str]:
    """No function is longer than 60 lines, its docstring included."""
    found = []
    for node in _nodes(source, ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MOST_LINES_OF_FUNCTION:
            found.append(
                _says(source, node, f"{node.name} has {lines} lines, at most {MOST_LINES_OF_FUNCTION}")
            )
    return found


def _module_level_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
                yield from _module_level_statements(getattr(statement, inner, []))
        for handler in getattr(statement, "handlers", []):
            yield from _module_level_statements(handler.body)
        if isinstance(statement, ast.ClassDef):
            yield from (s for s in statement.body if isinstance(s, (ast.Assign, ast.AnnAssign)))


def check_module_state(source: Source) -> list[str]:
    """Nothing at module or class level can change: no `global`, no bare list, dict or set.

    A table is a tuple, a frozenset, a MappingProxyType, or is annotated Mapping or Sequence, so that the
    type checker refuses to write to it. `__all__` and `__slots__` are Python's own.
    """
    found = [_says(source, node, "global statement") for node in _nodes(source, ast.Global)]
    for statement in _module_level_statements(source.tree.body):
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.value is None:
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [ast.unparse(target) for target in targets]
        if set(names) <= {"__all__", "__slots__"}:
            continue
        value = statement.value
        mutable = isinstance(value, _MUTABLE_LITERALS) or (
            isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in _MUTABLE_CALLS
        )
        annotation = ast.unparse(statement.annotation) if isinstance(statement, ast.AnnAssign) else ""
        if mutable and not _READ_ONLY_ANNOTATION.search(annotation):
            found.append(_says(source, statement, f"{', '.join(names)} is mutable module-level state"))
    return found


def check_excepts(source: Source) -> list[str]:
    """No `except:` without a type, and none that only passes: an error is handled, mapped or let through."""
    found = []
    for node in _nodes(source, ast.ExceptHandler):
        assert isinstance(node, ast.ExceptHandler)
        if node.type is None:
            found.append(_says(source, node, "bare except"))
        elif all(isinstance(s, ast.Pass) or _is_ellipsis(s) for s in node.body):
            found.append(
                _says(source, node, "silent except; contextlib.suppress with a reason, or handle it")
            )
    return found


def _is_ellipsis(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and statement.value.value is Ellipsis
    )


def check_determinism(source: Source) -> list[str]:
    """In packages that decide: no clock, no global random generator, no hash() (it is salted per process)."""
    if source.package not in DECISION_PACKAGES:
        return []
    found = [
        _says(source, node, f"{name} in a package that decides")
        for node, name in imported_modules(source)
        if name.split(".")[0] in CLOCKS_AND_CHANCE
    ]
    for node in _nodes(source, ast.Call):
        assert isinstance(node, ast.Call)
        called = ast.unparse(node.func)
        if called == "hash" or called.endswith("os.urandom"):
            found.append(_says(source, node, f"{called}() in a package that decides"))
        elif re.fullmatch(r"(np|numpy)\.random\..+", called):
            found.append(_says(source, node, f"{called}() in a package that decides; noise is keyed"))
    return found


def check_docstrings(source: Source) -> list[str]:
    """Every public module, class, function and method says what it is."""
    found = [] if ast.get_docstring(source.tree) or not source.tree.body else [f"{source.path}: no docstring"]
    if source.module == "stoker":  # the version and the lazy face, documented in the reference
        found = []
    return found + _undocumented(source, source.tree.body)


def _undocumented(source: Source, body: list[ast.stmt]) -> list[str]:
    found = []
    for node in body:
        if not isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        ) or node.name.startswith("_"):
            continue
        decorators = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
        if decorators & {"overload", "typing.overload"} or any(d.endswith(".setter") for d in decorators):
            continue
        if not ast.get_docstring(node):
            found.append(_says(source, node, f"{node.name} has no docstring"))
        if isinstance(node, ast.ClassDef):
            found += _undocumented(source, node.body)
    return found


def _words(name: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return {word.lower() for word in re.split(r"[._/\-]", spaced) if word}


def check_names(source: Source) -> list[str]:
    """No module, class, function or variable is a manager, a helper or a util: those say nothing."""
    found = []
    if bad := _words(source.path) & FORBIDDEN_WORDS:
        found.append(f"{source.path}: the file's name says {bad.pop()}")
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        else:
            continue
        if _words(name) & FORBIDDEN_WORDS:
            found.append(_says(source, node, f"{name} says nothing; name what it is"))
    return found


# Folders of one developer's machine. Written in pieces, so that this file does not contain what it looks for.
_MACHINE_PATH = re.compile(r"(?<![\w.~$}-])/(?:work|root|home|Users|tmp|private)/[A-Za-z0-9._-]+")


def check_machine_paths(path: str, text: str) -> list[str]:
    """Nothing names a folder of the machine it was written on."""
    return [
        f"{path}:{number}: names a path of one machine: {match.group()}"
        for number, line in enumerate(text.splitlines(), 1)
        if (match := _MACHINE_PATH.search(line))
    ]
