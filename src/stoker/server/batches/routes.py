"""The paths of /v1/batches."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Route

from stoker.server.batches.calls import CancelBatch, CreateBatch, ListBatches, OneBatch
from stoker.server.batches.runner import BatchRunner
from stoker.server.methods import Methods
from stoker.server.service import Service


def batch_routes(service: Service, runner: BatchRunner) -> Sequence[BaseRoute]:
    """The routes."""
    every = Methods(GET=ListBatches(service), POST=CreateBatch(service, runner))
    return (
        Route("/v1/batches", every, methods=every.names),
        Route("/v1/batches/{batch_id}", OneBatch(service), methods=["GET"]),
        Route("/v1/batches/{batch_id}/cancel", CancelBatch(service, runner), methods=["POST"]),
    )
