"""POST /v1/embeddings around a fake model: forms of input and answer, refusals, many inputs, leaving."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.fake_host import FakeHost, FakeModel
from tests.served import Served, serve

from stoker.api.errors import PromptTooLongError, RequestError
from stoker.api.events import DoneEvent, EmbeddingEvent, Event, Usage
from stoker.api.request import Request
from stoker.server.embedding_schemas import MAX_INPUTS, EmbeddingList
from stoker.server.openapi import openapi_document

WIDTH = 3


def vector_of(token_ids: list[int]) -> tuple[float, ...]:
    """Numbers that a 32-bit float holds."""
    return len(token_ids) / 4, sum(token_ids) / 1024, 0.5


@dataclass
class EmbeddingModel(FakeModel):
    """Embeds; counts how many requests were open at once."""

    most_open: int = 0
    fails: bool = False
    seen: list[Request] = field(default_factory=list)

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        """As an endpoint, after a moment."""
        assert request.pooling is not None
        self.seen.append(request)
        token_ids = await self.encode(request.prompt)
        if 66 in token_ids:
            raise RequestError("prompt has a B; allowed: none")
        if len(token_ids) > 1000:
            raise PromptTooLongError("the prompt is too long")
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        ended = False
        try:
            await asyncio.sleep(0.5 if token_ids == [115] else 0.001)
            usage = Usage(len(token_ids), 0)
            if self.fails:
                yield DoneEvent(request.request_id, 0, "error", "not numbers", 0, usage)
            else:
                yield EmbeddingEvent(request.request_id, vector_of(token_ids))
                yield DoneEvent(request.request_id, 0, "stop", None, 0, usage)
            ended = True
        finally:
            self.open -= 1
            if not ended:
                self.aborted.append(request.request_id)


@pytest.fixture
def served() -> Iterator[Served]:
    with serve(FakeHost(EmbeddingModel())) as running:
        yield running


def model_of(served: Served) -> EmbeddingModel:
    model: EmbeddingModel = served.host.model
    return model


def ask(served: Served, given: Any, **fields: Any) -> Any:
    return served.post("/v1/embeddings", {"model": "fake", "input": given, **fields})


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("coal", [b"coal"]),
        (["coal", "grüß"], [b"coal", "grüß".encode()]),
        ([1, 2, 3], [bytes([1, 2, 3])]),
        ([[1], [2, 3]], [bytes([1]), bytes([2, 3])]),
    ],
)
def test_forms_of_input(served: Served, given: Any, inputs: list[bytes]) -> None:
    answer = ask(served, given)
    assert answer.status_code == 200
    tokens = sum(map(len, inputs))
    assert answer.json() == {
        "object": "list",
        "model": "fake",
        "data": [
            {"object": "embedding", "index": i, "embedding": list(vector_of(list(text)))}
            for i, text in enumerate(inputs)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    EmbeddingList.model_validate(answer.json())
    assert {request.pooling for request in model_of(served).seen} == {"mean"}


def test_base64_is_the_same_numbers(served: Served) -> None:
    packed = ask(served, "coal", encoding_format="base64", dimensions=WIDTH).json()["data"][0]["embedding"]
    assert struct.unpack("<3f", base64.b64decode(packed)) == vector_of(list(b"coal"))


def test_what_the_engine_is_told(served: Served) -> None:
    fields: dict[str, Any] = {"normalize": True, "embed_dtype": "float32"}  # what is done anyway
    fields |= {"pooling": "last", "user": "ada", "priority": -3, "cache_salt": "s", "service_tier": "flex"}
    assert ask(served, "coal", **fields, keep_alive="5m", encoding_format=None).status_code == 200
    (request,) = model_of(served).seen
    assert (request.pooling, request.tenant, request.priority, request.cache_salt, request.background) == (
        "last", "ada", -3, "s", True,
    )  # fmt: skip
    assert served.host.keep_alives == [300.0]


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"input": None}, 400, "input", "input is missing"),
        ({"input": ""}, 400, "input", "at least 1 character"),
        ({"input": []}, 400, "input", "at least 1"),
        ({"input": [[]]}, 400, "input[0]", "at least 1"),
        ({"input": ["a", ""]}, 400, "input[1]", "at least 1 character"),
        ({"input": ["a", 1]}, 400, None, "input"),
        ({"input": {"text": "a"}}, 400, "input", "input is"),
        ({"input": [-1]}, 400, "input[0]", "greater than or equal to 0"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, 400, "input", f"at most {MAX_INPUTS}"),
        ({"input": "B"}, 400, "input", "input: prompt has a B"),
        ({"input": ["a", "aB", "c"]}, 400, "input[1]", "input[1]: prompt has a B"),
        ({"input": ["a", "x" * 2000]}, 400, "input[1]", "too long"),
        ({"model": "other"}, 404, "model", "known: fake"),
        ({"encoding_format": "hex"}, 400, "encoding_format", "'float' or 'base64'"),
        ({"dimensions": 2}, 400, "dimensions", "dimensions is 2; allowed: 3"),
        ({"dimensions": 0}, 400, "dimensions", "greater than or equal to 1"),
        ({"pooling": "cls"}, 400, "pooling", "'mean' or 'last'"),
        ({"truncate_prompt_tokens": 8}, 400, "truncate_prompt_tokens", "prompts are never cut"),
        ({"normalize": False}, 400, "normalize", "embeddings have length 1; allowed: true"),
        ({"embed_dtype": "float16"}, 400, "embed_dtype", "allowed: float32"),
        ({"stream": True}, 400, "stream", "not a field"),
    ],
)
def test_refusals(served: Served, fields: Any, status: int, param: str | None, words: str) -> None:
    answer = served.post("/v1/embeddings", {"input": "coal", **fields})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    if param is not None:
        assert error["param"] == param


def test_the_models_own_pooling(served: Served) -> None:
    model_of(served).pooling = "last"
    assert ask(served, "coal").status_code == 200
    model_of(served).pooling = None
    refused = ask(served, "coal")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "pooling")
    assert ask(served, "coal", pooling="mean").status_code == 200
    assert [request.pooling for request in model_of(served).seen] == ["last", "mean"]


def test_many_inputs_share_the_queue(served: Served) -> None:
    answer = ask(served, [f"text {i}" for i in range(MAX_INPUTS)])
    assert [one["index"] for one in answer.json()["data"]] == list(range(MAX_INPUTS))
    assert answer.json()["data"][77]["embedding"] == list(vector_of(list(b"text 77")))
    assert 1 < model_of(served).most_open <= 64


def test_the_first_error_ends_the_others(served: Served) -> None:
    assert ask(served, ["s", "B"]).status_code == 400
    assert len(model_of(served).aborted) == 1
    assert model_of(served).open == 0
    assert served.service.open_requests == 0


def test_an_embedding_that_failed_is_a_500(served: Served) -> None:
    model_of(served).fails = True
    answer = ask(served, "coal")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")


def test_the_document_has_it() -> None:
    operation = openapi_document()["paths"]["/v1/embeddings"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert body.endswith("/EmbeddingRequest")
