"""Our own OpenAPI document against the server: schemathesis finds no 500; answers are as described."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.fake_host import FakeHost, FakeModel
from tests.served import Served, serve

from stoker.server.openapi import openapi_document
from stoker.server.service import Views
from stoker.state import StateSource, locate_state

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "openapi.json"
schema = schemathesis.openapi.from_dict(openapi_document())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    async def metrics() -> bytes:
        return b"stoker_up 1\n"

    async def stats() -> dict[str, object]:
        return {"time_s": 1.0, "models": []}

    host = FakeHost(FakeModel("smollm2", answer=lambda request, seed: "Grüße"))
    views = Views(metrics, "text/plain; version=0.0.4", stats)
    location = locate_state(str(tmp_path_factory.mktemp("state") / "state.db"))
    assert location is not None
    with serve(host, views=views, state=StateSource(location)) as running:
        yield running


@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_generated_request_gets_a_500(case: schemathesis.Case, served: Served) -> None:
    response = case.call(base_url=served.url, timeout=20)
    case.validate_response(
        response,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )
    assert response.headers["x-request-id"]


def test_the_document_in_the_docs_is_the_servers(served: Served) -> None:
    written = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    assert written == served.get("/openapi.json").json(), "run `make docs`"


def test_the_document_names_every_path_of_the_server(served: Served) -> None:
    from stoker.server.app import _all_routes

    served_paths = {route.path.replace("{name:path}", "{model}") for route in _all_routes(served.service)}
    assert served_paths - {"/openapi.json"} == set(openapi_document()["paths"])
