"""Fields in a URL after "?", checked like those of a body."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from pydantic import BaseModel, ConfigDict

from stoker.server.errors import refuse
from stoker.server.fields import parse
from stoker.server.http import Scope

_MOST_FIELDS = 32


class QueryFields(BaseModel):
    """Fields of a query. They come as text, so that "20" is a number here."""

    model_config = ConfigDict(extra="forbid")


Q = TypeVar("Q", bound=QueryFields)


def query_of(scope: Scope, model: type[Q]) -> Q:
    """The query's fields. Raises `Refusal` for one that is unknown, wrong, or given twice."""
    text = scope.get("query_string", b"").decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="replace")
    except ValueError:
        raise refuse(None, f"the query has more than {_MOST_FIELDS} fields; allowed: at most that") from None
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise refuse(twice, f"{twice!r:.80} is in the query {names.count(twice)} times; allowed: once")
    return parse(msgspec.json.encode(dict(pairs)), model)
