"""The stub of the compiled module names what the module has, with the same parameters."""

from __future__ import annotations

import ast
import re
from enum import Enum
from pathlib import Path

import pytest

STUB = Path(__file__).parents[2] / "src" / "stoker" / "_native.pyi"


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in function.args.args]


def _stub_members() -> dict[str, list[str] | None]:
    """Dotted name -> parameters of a function or method, none for attributes, properties and classes."""
    found: dict[str, list[str] | None] = {}
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign):
            found[ast.unparse(node.target)] = None
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = _parameters(node)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = None
            for member in (item for item in node.body if isinstance(item, ast.Assign)):
                found[f"{node.name}.{ast.unparse(member.targets[0])}"] = None  # of an enum
            for method in (item for item in node.body if isinstance(item, ast.FunctionDef)):
                is_property = any(ast.unparse(d) == "property" for d in method.decorator_list)
                found[f"{node.name}.{method.name}"] = None if is_property else _parameters(method)
    return found


def _module_members() -> dict[str, list[str] | None]:
    native = pytest.importorskip("stoker._native", reason="the native core is not built: make builds it")
    found: dict[str, list[str] | None] = {}
    for name, value in vars(native).items():
        if name.startswith("_"):
            continue
        found[name] = _signature(value)
        if isinstance(value, type):
            for inner, member in vars(value).items():
                if not inner.startswith("_") or (inner == "__init__" and hasattr(member, "__nb_signature__")):
                    found[f"{name}.{inner}"] = _signature(member)
    return found


def _signature(member: object) -> list[str] | None:
    """Parameter names of a function, from what nanobind knows of it."""
    if isinstance(member, (type, property, str, Enum)):
        return None
    member = getattr(member, "__func__", member)  # of a static method
    (signature,) = member.__nb_signature__  # type: ignore[attr-defined]  # overloads: the core has none
    text = signature[0].partition("(")[2]
    names, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if depth == 0 and character in ",)":
            names.append(re.split(r"[:=]", text[start:place])[0].strip())
            start = place + 1
        if depth == 0 and character == ")":
            break
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(character, 0)
    return [name for name in names if name]


def test_the_stub_has_what_the_module_has() -> None:
    stub, module = _stub_members(), _module_members()
    assert sorted(stub) == sorted(module)
    assert stub == module
