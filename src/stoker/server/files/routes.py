"""The paths of /v1/files."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Route

from stoker.server.files.stored import DeleteFile, FileContent, ListFiles, OneFile
from stoker.server.files.upload import UploadFile
from stoker.server.methods import Methods
from stoker.server.service import Service


def file_routes(service: Service) -> Sequence[BaseRoute]:
    """The routes."""
    every = Methods(GET=ListFiles(service), POST=UploadFile(service))
    one = Methods(GET=OneFile(service), DELETE=DeleteFile(service))
    return (
        Route("/v1/files", every, methods=every.names),
        Route("/v1/files/{file_id}", one, methods=one.names),
        Route("/v1/files/{file_id}/content", FileContent(service), methods=["GET"]),
    )
