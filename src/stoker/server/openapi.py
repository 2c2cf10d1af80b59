"""The OpenAPI document: paths by hand, schemas from the pydantic models that check and describe bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stoker import __version__
from stoker.server import embedding_schemas, schemas
from stoker.server.batches import schemas as batches
from stoker.server.files import schemas as files
from stoker.server.http import JSON, Receive, Scope, Send, answer_bytes
from stoker.server.messages import schemas as messages
from stoker.server.responses import schemas as responses
from stoker.server.stored_chats import schemas as stored_chats

_REF = "#/components/schemas/{model}"
_REASONS: Mapping[int, str] = MappingProxyType(
    {
        304: "Not modified",
        400: "A field is wrong, contradicts another, or is not supported; the prompt is too long",
        401: "No API key, or an unknown one",
        403: "The Host header is not one of this server's",
        404: "The model is not served here; the message lists those that are",
        405: "Another method",
        408: "The body came too slowly, or no token within deadline_ms",
        409: "It is not in a state for this",
        413: "The body is larger than allowed",
        415: "The body is not application/json",
        429: "The queue is full: see Retry-After",
        500: "The engine failed; the log has the reason under the request's id",
        501: "The server keeps nothing (--state none)",
        503: "The model cannot answer now: see Retry-After",
        504: "No token within deadline_ms",
        529: "The machine has no room for the model now: see Retry-After",
    }
)
_OF_ALL = (401, 403)
_OF_BODIES = (400, 404, 408, 413, 415, 429, 500, 503)
_OF_STATE = (400, 404, 500, 501, 503)  # what is kept, in the state database
_OF_MESSAGES = (*_OF_BODIES, 504, 529)


@dataclass(frozen=True, slots=True)
class _Operation:
    path: str
    method: str
    summary: str
    answer: type[BaseModel] | str  # a schema, or a media type
    body: type[BaseModel] | None = None
    errors: Sequence[int] = ()
    streams: bool = False
    is_open: bool = False  # needs no key
    body_type: str = "application/json"
    query: type[BaseModel] | None = None
    parameter: str | None = None  # in the path
    example: str | None = None  # of that
    error: type[BaseModel] = schemas.ErrorAnswer


_OPERATIONS: Sequence[_Operation] = (
    _Operation(
        "/v1/chat/completions",
        "post",
        "Answer the messages of a chat",
        schemas.ChatCompletion,
        schemas.ChatCompletionRequest,
        _OF_BODIES,
        streams=True,
    ),
    _Operation(
        "/v1/chat/completions",
        "get",
        "List the answers that were stored",
        stored_chats.CompletionList,
        errors=_OF_STATE,
        query=stored_chats.ListQuery,
    ),
    _Operation(
        "/v1/chat/completions/{completion_id}",
        "get",
        "One stored answer",
        stored_chats.StoredChatCompletion,
        errors=_OF_STATE,
        parameter="completion_id",
        example="chatcmpl-0",
    ),
    _Operation(
        "/v1/chat/completions/{completion_id}",
        "post",
        "Give a stored answer other metadata",
        stored_chats.StoredChatCompletion,
        stored_chats.UpdateCompletionRequest,
        (*_OF_BODIES, *_OF_STATE),
        parameter="completion_id",
        example="chatcmpl-0",
    ),
    _Operation(
        "/v1/chat/completions/{completion_id}",
        "delete",
        "Forget a stored answer",
        stored_chats.CompletionDeleted,
        errors=_OF_STATE,
        parameter="completion_id",
        example="chatcmpl-0",
    ),
    _Operation(
        "/v1/chat/completions/{completion_id}/messages",
        "get",
        "The messages that a stored answer answered",
        stored_chats.CompletionList,
        errors=_OF_STATE,
        query=stored_chats.MessagesQuery,
        parameter="completion_id",
        example="chatcmpl-0",
    ),
    _Operation(
        "/v1/responses",
        "post",
        "Answer items: whole, streamed or in the background, kept and gone on from",
        responses.Response,
        responses.ResponseRequest,
        (*_OF_BODIES, *_OF_STATE),
        streams=True,
    ),
    _Operation(
        "/v1/responses/input_tokens",
        "post",
        "Count the tokens of items",
        responses.InputTokens,
        responses.InputTokensRequest,
        (*_OF_BODIES, *_OF_STATE),
    ),
    _Operation(
        "/v1/responses/{response_id}",
        "get",
        "One response as it stands, or its stream",
        responses.Response,
        errors=_OF_STATE,
        streams=True,
        query=responses.RetrieveQuery,
        parameter="response_id",
        example="resp_0",
    ),
    _Operation(
        "/v1/responses/{response_id}",
        "delete",
        "Forget a response",
        responses.ResponseDeleted,
        errors=(*_OF_STATE, 409),
        parameter="response_id",
        example="resp_0",
    ),
    _Operation(
        "/v1/responses/{response_id}/cancel",
        "post",
        "End a background response",
        responses.Response,
        errors=_OF_STATE,
        parameter="response_id",
        example="resp_0",
    ),
    _Operation(
        "/v1/responses/{response_id}/input_items",
        "get",
        "What a response was given",
        responses.ItemList,
        errors=_OF_STATE,
        query=responses.ItemsQuery,
        parameter="response_id",
        example="resp_0",
    ),
    _Operation(
        "/v1/completions",
        "post",
        "Continue texts or token ids",
        schemas.Completion,
        schemas.CompletionRequest,
        _OF_BODIES,
        streams=True,
    ),
    _Operation(
        "/v1/messages",
        "post",
        "Answer the messages of a chat, in Anthropic's dialect",
        messages.MessageAnswer,
        messages.MessagesRequest,
        _OF_MESSAGES,
        streams=True,
        error=messages.MessagesError,
    ),
    _Operation(
        "/v1/messages/count_tokens",
        "post",
        "Count the tokens of the messages of a chat",
        messages.TokenCount,
        messages.CountTokensRequest,
        _OF_MESSAGES,
        error=messages.MessagesError,
    ),
    _Operation(
        "/v1/embeddings",
        "post",
        "A vector of length 1 for each text or list of token ids",
        embedding_schemas.EmbeddingList,
        embedding_schemas.EmbeddingRequest,
        _OF_BODIES,
    ),
    _Operation(
        "/v1/files",
        "post",
        "Upload a file",
        files.File,
        files.UploadFields,
        (*_OF_BODIES, *_OF_STATE),
        body_type="multipart/form-data",
    ),
    _Operation("/v1/files", "get", "List files", files.FileList, errors=_OF_STATE, query=files.FileQuery),
    _Operation(
        "/v1/files/{file_id}",
        "get",
        "One file",
        files.File,
        errors=_OF_STATE,
        parameter="file_id",
        example="file-0",
    ),
    _Operation(
        "/v1/files/{file_id}",
        "delete",
        "Delete a file",
        files.FileDeleted,
        errors=_OF_STATE,
        parameter="file_id",
        example="file-0",
    ),
    _Operation(
        "/v1/files/{file_id}/content",
        "get",
        "What is in a file",
        "application/octet-stream",
        errors=_OF_STATE,
        parameter="file_id",
        example="file-0",
    ),
    _Operation(
        "/v1/batches",
        "post",
        "Answer the calls in a file while nothing else is open",
        batches.Batch,
        batches.BatchRequest,
        (*_OF_BODIES, *_OF_STATE),
    ),
    _Operation(
        "/v1/batches", "get", "List batches", batches.BatchList, errors=_OF_STATE, query=batches.BatchQuery
    ),
    _Operation(
        "/v1/batches/{batch_id}",
        "get",
        "One batch",
        batches.Batch,
        errors=_OF_STATE,
        parameter="batch_id",
        example="batch_0",
    ),
    _Operation(
        "/v1/batches/{batch_id}/cancel",
        "post",
        "Cancel a batch; what was answered is kept",
        batches.Batch,
        errors=(*_OF_STATE, 409),
        parameter="batch_id",
        example="batch_0",
    ),
    _Operation("/v1/models", "get", "List the models on offer", schemas.ModelList),
    _Operation(
        "/v1/models/{model}",
        "get",
        "One model",
        schemas.Model,
        errors=(404,),
        parameter="model",
        example="smollm2",
    ),
    _Operation(
        "/tokenize",
        "post",
        "The token ids of a prompt",
        schemas.Tokens,
        schemas.TokenizeRequest,
        _OF_BODIES,
    ),
    _Operation(
        "/detokenize",
        "post",
        "The text of token ids",
        schemas.Text,
        schemas.DetokenizeRequest,
        _OF_BODIES,
    ),
    _Operation("/health", "get", "200 while a token can be produced", schemas.Health, is_open=True),
    _Operation("/ping", "get", "The same as /health", schemas.Health, is_open=True),
    _Operation("/version", "get", "The release that runs here", schemas.Version),
    _Operation("/metrics", "get", "Metrics in Prometheus' text format", "text/plain"),
    _Operation("/stats", "get", "Counters and hottest prefixes, as the page shows them", schemas.Stats),
)


@cache
def openapi_document() -> dict[str, Any]:
    """The document. Callers do not change it."""
    models = _models()
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stoker",
            "version": __version__,
            "description": "OpenAI's API, answered by models on this machine. Every field is either obeyed "
            "or refused by name.",
        },
        "paths": paths,
        "components": {
            "schemas": schema["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _models() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = [schemas.ErrorAnswer]
    for operation in _OPERATIONS:
        for model in (operation.body, operation.answer, operation.error):
            if isinstance(model, type) and model not in found:
                found.append(model)
    return found


def _describe(operation: _Operation) -> dict[str, Any]:
    content = (
        {operation.answer: {"schema": {"type": "string"}}}
        if isinstance(operation.answer, str)
        else _json(operation.answer)
    )
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    for status in sorted({*_OF_ALL, *operation.errors}):
        responses[str(status)] = {"description": _REASONS[status], "content": _json(operation.error)}
    if operation.answer is schemas.Health:
        responses["503"] = {"description": "No token can be produced", "content": _json(schemas.Health)}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}_{operation.path.strip('/').replace('/', '_')}".replace(
            "{", ""
        ).replace("}", ""),
        "responses": responses,
    }
    if not operation.is_open:
        described["security"] = [{}, {"key": []}]
    if operation.body is not None:
        content = {operation.body_type: _json(operation.body)["application/json"]}
        described["requestBody"] = {"required": True, "content": content}
    parameters = _parameters(operation)
    if parameters:
        described["parameters"] = parameters
    return described


def _parameters(operation: _Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if operation.parameter is not None:
        found.append(
            {
                "name": operation.parameter,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
                "example": operation.example,
            }
        )
    if operation.query is not None:
        for name, field in operation.query.model_json_schema()["properties"].items():
            found.append({"name": name, "in": "query", "required": False, "schema": field})
    return found


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


@dataclass(frozen=True)
class OpenApi:
    """GET /openapi.json."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        await answer_bytes(scope, send, 200, msgspec.json.encode(openapi_document()), [JSON])
