"""GET /v1/models and /v1/models/{id}: what is on offer, loaded or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stoker.api.protocols import ModelCard
from stoker.server.http import Receive, Scope, Send, answer_json
from stoker.server.service import Service


def model_object(card: ModelCard) -> dict[str, Any]:
    """OpenAI's object of a model, with vLLM's `root` and `max_model_len`."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created_s,
        "owned_by": "stoker",
        "root": card.name,
        "max_model_len": card.context_tokens,
        "loaded": card.loaded,
        "digest": card.digest,
    }


@dataclass(frozen=True)
class Models:
    """The list, or the one that the path names."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `ModelNotFoundError`."""
        name = scope["path_params"].get("name")
        if name is not None:
            await answer_json(scope, send, model_object(self.service.card(name)))
            return
        cards = self.service.host.cards()
        await answer_json(scope, send, {"object": "list", "data": [model_object(card) for card in cards]})
