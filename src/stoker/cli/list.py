"""`stoker list`: the models on this machine, and the known ones that could be fetched."""

from __future__ import annotations

from stoker.cli.options import JsonOption
from stoker.cli.output import format_bytes, print_json, print_table


def list_models(as_json: JsonOption = False) -> None:
    """List the models on this machine.

    Also those that other tools have fetched, and the known names that can be pulled.
    """
    from stoker.weights.sources import KNOWN_MODELS
    from stoker.weights.store import list_models as models_here

    entries = models_here()
    present = {entry.name for entry in entries}
    absent = [model for model in KNOWN_MODELS.values() if model.name not in present]
    if as_json:
        here = [
            {"name": e.name, "origin": e.origin, "size_bytes": e.size_bytes, "path": str(e.path)}
            for e in entries
        ]
        there = [{"name": m.name, "origin": None, "size_bytes": m.size_bytes, "path": None} for m in absent]
        print_json({"models": here + there})
        return
    rows = [(e.name, e.origin, format_bytes(e.size_bytes), str(e.path)) for e in entries]
    rows += [(m.name, "-", format_bytes(m.size_bytes), f"stoker pull {m.name}") for m in absent]
    print_table(("NAME", "FROM", "SIZE", "PATH"), rows)
