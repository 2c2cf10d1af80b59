"""The paths of /v1/responses."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Route

from stoker.server.methods import Methods
from stoker.server.responses.create import CountInputTokens, CreateResponse
from stoker.server.responses.records import Records
from stoker.server.responses.runs import BackgroundRuns
from stoker.server.responses.stored import CancelResponse, DeleteResponse, InputItems, OneResponse
from stoker.server.service import Service


def response_routes(service: Service) -> Sequence[BaseRoute]:
    """The routes, and what they share."""
    records = Records(service)
    runs = BackgroundRuns(service, records)
    service.works.append(runs)
    one = Methods(GET=OneResponse(records, runs), DELETE=DeleteResponse(records, runs))
    path = "/v1/responses/{response_id}"
    return (
        Route("/v1/responses", CreateResponse(service, records, runs), methods=["POST"]),
        Route("/v1/responses/input_tokens", CountInputTokens(service, records), methods=["POST"]),
        Route(path, one, methods=one.names),
        Route(f"{path}/cancel", CancelResponse(records, runs), methods=["POST"]),
        Route(f"{path}/input_items", InputItems(records), methods=["GET"]),
    )
