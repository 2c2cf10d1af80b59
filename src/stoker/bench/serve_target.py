"""The endpoint under load: which model it has, which fields it takes, how a prompt for it is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from stoker.api.errors import RequestError, UnavailableError
from stoker.bench.serve_events import message_of, read_stream
from stoker.bench.serve_http import Client, Exchange
from stoker.bench.serve_prompts import IdPrompts, Prompt, TextPrompts, calibrate_text, learn_ids

Api = Literal["completions", "chat"]
APIS: tuple[Api, ...] = ("completions", "chat")

PROBE_TIMEOUT_S = 120.0  # a server may load its model at the first request
# What it means for the figures that an endpoint refuses a field.
CONSEQUENCES: Mapping[str, str] = MappingProxyType(
    {
        "ignore_eos": "answers may be shorter than asked",
        "stream_options": "tokens are counted by events",
        "return_token_ids": "tokens are counted by usage",
    }
)
REFUSED = (400, 404, 415, 422, 501)  # statuses that say the request is not understood


def check_api(name: str) -> Api:
    """The API of this name. Raises RequestError."""
    for api in APIS:
        if name == api:
            return api
    raise RequestError(f"api is {name!r:.80}; allowed: {', '.join(APIS)}")


@dataclass(frozen=True)
class Target:
    """An endpoint that has answered a probe. `extras` are the fields beyond the necessary that it takes."""

    client: Client
    model: str
    api: Api
    prompts: IdPrompts | TextPrompts
    extras: tuple[tuple[str, Any], ...]
    limit_name: str  # what it calls the most tokens of an answer
    temperature: float

    @property
    def path(self) -> str:
        """Where requests go."""
        return "/v1/chat/completions" if self.api == "chat" else "/v1/completions"

    def body(self, prompt: Prompt, output_tokens: int) -> bytes:
        """A streamed request for exactly `output_tokens` tokens, where the server takes ignore_eos."""
        return json.dumps(
            {
                "model": self.model,
                **_prompt_fields(self.api, prompt),
                self.limit_name: output_tokens,
                "temperature": self.temperature,
                "stream": True,
                **dict(self.extras),
            },
            separators=(",", ":"),
        ).encode()


async def open_target(
    client: Client,
    *,
    model: str | None,
    api: Api,
    temperature: float = 0.0,
    count_ids: bool = False,
    warn: Callable[[str], None],
) -> Target:
    """Ask the endpoint what is needed for prompts and bodies; `warn` hears of what it does not take.

    `count_ids`: ask for token ids in every event. Raises UnavailableError if there is nobody,
    RequestError with the server's words if it refuses.
    """
    name = model if model is not None else await _first_model(client)
    extras: dict[str, Any] = {"stream_options": {"include_usage": True}, "ignore_eos": True}
    if count_ids:
        extras["return_token_ids"] = True
    ids = await learn_ids(_tokenizer(client, name)) if api == "completions" else None
    probe = _Probe(client, name, api, temperature, extras)
    if ids is not None and not await probe.takes(list(ids.pool[:8])):
        warn("the server does not take token ids as a prompt; prompts are text of counted words")
        ids = None
    await probe.settle(list(ids.pool[:8]) if ids is not None else "The time", warn)
    prompts = ids or await calibrate_text(probe.count)
    return probe.target(prompts)


class _Probe:
    """Finds the fields that the endpoint takes, by asking for two tokens."""

    def __init__(
        self, client: Client, model: str, api: Api, temperature: float, extras: dict[str, Any]
    ) -> None:
        self._client = client
        self._model = model
        self._api = api
        self._temperature = temperature
        self._extras = extras
        self._limit_name = "max_tokens"

    def target(self, prompts: IdPrompts | TextPrompts) -> Target:
        """What was found."""
        return Target(
            self._client,
            self._model,
            self._api,
            prompts,
            tuple(self._extras.items()),
            self._limit_name,
            self._temperature,
        )

    async def takes(self, prompt: Prompt) -> bool:
        """Whether a plain request with this prompt is answered."""
        found = await self._post({**_prompt_fields(self._api, prompt), "max_tokens": 2})
        return found.failure is None and found.status == 200

    async def settle(self, prompt: Prompt, warn: Callable[[str], None]) -> None:
        """Leave out, one by one, what the endpoint refuses. Raises RequestError if that does not help."""
        first_refusal = None
        dropped: list[str] = []
        while True:
            target = self.target(IdPrompts(()))
            exchange = await self._client.exchange(
                target.path, target.body(prompt, 2), timeout_s=PROBE_TIMEOUT_S
            )
            record = read_stream(exchange)
            if record.error is None or record.error == "empty":
                break
            if exchange.status not in REFUSED:
                raise _refusal(self._client, exchange, record.error, record.detail)
            first_refusal = first_refusal or record
            if "max_completion_tokens" in record.detail and self._limit_name == "max_tokens":
                self._limit_name = "max_completion_tokens"
                continue
            if not self._extras:
                raise _refusal(self._client, exchange, first_refusal.error or "", first_refusal.detail)
            named = [name for name in self._extras if name in record.detail]
            name = named[0] if named else list(self._extras)[-1]
            del self._extras[name]
            dropped.append(name)
        for name in dropped:
            warn(f"the server refuses {name}: {CONSEQUENCES[name]}")
        if record.counted_by == "events":
            warn("the server tells no usage: each event with text is counted as one token")

    async def count(self, text: str) -> int:
        """Prompt tokens of `text`, as the server counts them. Raises RequestError if it does not tell."""
        found = await self._post({**_prompt_fields(self._api, text), self._limit_name: 1})
        if found.status != 200 or found.failure is not None:
            raise _refusal(
                self._client, found, found.failure or f"http_{found.status}", message_of(found.body)
            )
        usage = _json(found).get("usage")
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if not isinstance(tokens, int):
            raise RequestError(
                "the server tells no usage.prompt_tokens, so prompts cannot be made of a known length"
            )
        return tokens

    async def _post(self, fields: dict[str, Any]) -> Exchange:
        body = json.dumps({"model": self._model, "temperature": self._temperature, **fields}).encode()
        path = self.target(IdPrompts(())).path
        return await self._client.exchange(path, body, timeout_s=PROBE_TIMEOUT_S)


def _prompt_fields(api: Api, prompt: Prompt) -> dict[str, Any]:
    if api == "chat":
        return {"messages": [{"role": "user", "content": prompt}]}
    return {"prompt": prompt}


async def _first_model(client: Client) -> str:
    found = await client.exchange("/v1/models", None, timeout_s=PROBE_TIMEOUT_S)
    if found.failure is not None or found.status != 200:
        kind = found.failure or f"http_{found.status}"
        raise _refusal(client, found, kind, found.detail or message_of(found.body))
    data = _json(found).get("data")
    first = data[0] if isinstance(data, list) and data else None
    name = first.get("id") if isinstance(first, dict) else None
    if not isinstance(name, str):
        raise RequestError("the server names no model at /v1/models", hint="--model NAME")
    return name


def _tokenizer(client: Client, model: str) -> Callable[[str], Any]:
    async def tokenize(text: str) -> list[int] | None:
        for fields in ({"add_special_tokens": False}, {}):
            body = json.dumps({"model": model, "prompt": text, **fields}).encode()
            found = await client.exchange("/tokenize", body, timeout_s=PROBE_TIMEOUT_S)
            tokens = _json(found).get("tokens") if found.status == 200 else None
            if isinstance(tokens, list) and all(type(token) is int for token in tokens):
                return tokens
        return None

    return tokenize


def _json(found: Exchange) -> dict[str, Any]:
    try:
        value = json.loads(found.body)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _refusal(client: Client, found: Exchange, kind: str, detail: str) -> RequestError | UnavailableError:
    where = f"http://{client.address.authority}{client.address.base}"
    if found.failure == "connect":
        return UnavailableError(f"nobody answers at {where}: {detail}", hint="stoker serve MODEL starts one")
    if found.failure is not None or found.status >= 500:
        return UnavailableError(f"{where} cannot answer ({kind}): {detail}")
    if found.status in (401, 403):
        return RequestError(f"{where} refuses the key ({kind}): {detail}", hint="--api-key KEY")
    return RequestError(f"{where} refuses the request ({kind}): {detail}")
