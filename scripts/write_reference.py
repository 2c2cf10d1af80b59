"""Write docs/reference/cli.md, errors.md and openapi.json from the code.

`make docs` calls this; a test compares the pages with what it would write, so that they cannot grow stale.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from stoker.api import errors
from stoker.cli.app import build_app

ROOT = Path(__file__).resolve().parents[1]
GENERATED = "<!-- Written by scripts/write_reference.py (make docs). Change the code, not this page. -->"

# Variables that no option mirrors: (name, what it does).
OTHER_VARIABLES = (
    ("STOKER_API_KEY", "API key of `stoker serve`, beside those of --api-key-file."),
    ("STOKER_HOME", "Folder for fetched models, and for what servers keep, instead of the system's own."),
    (
        "STOKER_TARGET",
        "Instruction set of the kernels: scalar, avx2, avx512 or neon; default: the best here.",
    ),
    ("HF_HUB_CACHE, HF_HOME", "Where Hugging Face keeps its files, as its own tools read them."),
    ("OLLAMA_MODELS", "Where Ollama keeps its models."),
)


def cli_reference() -> str:
    """The page of all commands, their arguments and options."""
    app = typer.main.get_command(build_app())
    commands: dict[str, Any] = app.commands  # type: ignore[attr-defined]
    lines = ["# Command line", "", GENERATED, "", *_command("stoker", app, "COMMAND ...")]
    for name in sorted(commands):
        lines += ["", *_command(f"stoker {name}", commands[name], "")]
        # `bench` is a command whose first word may name another.
        for inner, command in getattr(commands[name], "measurements", dict)().items():
            lines += ["", *_command(f"stoker {name} {inner}", command, "")]
    lines += ["", "## Other environment variables", "", "| variable | |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in OTHER_VARIABLES]
    lines += ["", "## Exit status", "", "| status | |", "|---|---|", "| 0 | it worked |"]
    lines += [
        "| 1 | an error; stderr has one line that says which |",
        "| 2 | wrong usage; stderr says what |",
    ]
    lines += ["| 130 | interrupted by Ctrl-C |", ""]
    return "\n".join(lines)


def _command(name: str, command: Any, rest: str) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    words = [name, "[OPTIONS]", *(_argument(p) for p in arguments), rest]
    yield f"## {name}"
    yield ""
    yield f"`{' '.join(word for word in words if word)}`"
    yield ""
    yield from inspect.cleandoc(command.help or "").splitlines()
    if arguments:
        yield from ("", "| argument | | variable |", "|---|---|---|")
        yield from (f"| `{_argument(p)}` | {_cell(p.help)} | {_variable(p)} |" for p in arguments)
    yield from ("", "| option | | default | variable |", "|---|---|---|---|")
    for option in options:
        names = ", ".join(f"`{n}`" for n in [*option.opts, *option.secondary_opts])
        yield f"| {names} | {_cell(option.help)} | {_default(option)} | {_variable(option)} |"


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).strip("[]").upper()
    return name if parameter.required else f"[{name}]"


def _cell(text: str | None) -> str:
    # A default that is a rule, not a value, stands in the help as "[default: ...]" and moves to its column.
    return re.sub(r"\s*\[default:.*\]$", "", text or "").replace("|", "\\|")


def _default(option: Any) -> str:
    if rule := re.search(r"\[default: (.*)\]$", option.help or ""):
        return rule.group(1)
    if option.default is None or option.default is False:
        return ""
    return "on" if option.default is True else f"`{option.default}`"


def _variable(parameter: Any) -> str:
    variables = parameter.envvar or []
    return ", ".join(f"`{v}`" for v in ([variables] if isinstance(variables, str) else variables))


def errors_reference() -> str:
    """The page of all error classes, in the order and under the headings of their module."""
    lines = ["# Errors", "", GENERATED, ""]
    lines += inspect.cleandoc(errors.__doc__ or "").splitlines()
    lines += [
        "",
        "Import them from `stoker.api.errors`. On the command line each is one line on stderr and exit",
    ]
    lines += ["status 1.", "", "| error | is a | raised when |", "|---|---|---|"]
    for error in error_classes():
        base = error.__bases__[0].__name__
        text = " ".join(inspect.cleandoc(error.__doc__ or "").split()).replace("|", "\\|")
        lines.append(f"| `{error.__name__}` | `{base}` | {text} |")
    return "\n".join([*lines, ""])


def error_classes() -> list[type[errors.StokerError]]:
    """Every public error, in the order of the source."""
    return [
        value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.StokerError) and not name.startswith("_")
    ]


def openapi_reference() -> str:
    """The server's OpenAPI document, as GET /openapi.json gives it."""
    from stoker.server.openapi import openapi_document

    return json.dumps(openapi_document(), ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    """Write the pages."""
    folder = ROOT / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cli.md").write_text(cli_reference(), encoding="utf-8")
    (folder / "errors.md").write_text(errors_reference(), encoding="utf-8")
    (folder / "openapi.json").write_text(openapi_reference(), encoding="utf-8")
    print("wrote docs/reference/cli.md, docs/reference/errors.md, docs/reference/openapi.json")


if __name__ == "__main__":
    main()
