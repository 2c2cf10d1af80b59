"""POST /tokenize and /detokenize, with vLLM's fields."""

from __future__ import annotations

from dataclasses import dataclass

from stoker.api.request import SamplingParams
from stoker.server.chat_messages import messages_of, tools_of
from stoker.server.conversation import Conversation, prepare
from stoker.server.errors import refuse
from stoker.server.fields import parse
from stoker.server.http import Receive, Scope, Send, answer_json, read_body
from stoker.server.schemas import DetokenizeRequest, TokenizeRequest
from stoker.server.service import Service
from stoker.server.shapes import token_text


@dataclass(frozen=True)
class Tokenize:
    """The token ids of a prompt, as an answer to it would see them."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        service = self.service
        with service.one_more():
            fields = parse(await read_body(scope, receive, service.options, service.bodies), TokenizeRequest)
            if (fields.prompt is None) == (fields.messages is None):
                raise refuse("prompt", "one of prompt and messages is needed, and not both")
            if fields.messages is None:
                for name in ("add_generation_prompt", "tools", "chat_template_kwargs"):
                    if getattr(fields, name) is not None:
                        raise refuse(name, f"{name} is only for messages")
            add_generation_prompt = fields.add_generation_prompt is not False
            async with service.host.use(service.model_name(fields.model)) as model:
                if fields.prompt is not None:
                    token_ids = await model.encode(fields.prompt)
                else:
                    assert fields.messages is not None
                    conversation = Conversation(
                        messages_of(fields.messages),
                        tools=tools_of(fields.tools),
                        variables=fields.chat_template_kwargs or {},
                        add_generation_prompt=add_generation_prompt,
                    )
                    token_ids = await model.encode(prepare(model, conversation, SamplingParams()).chat)
                answer = {
                    "count": len(token_ids),
                    "max_model_len": model.card.context_tokens,
                    "tokens": token_ids,
                    "token_strs": (
                        [token_text(model.token_bytes(token_id)) for token_id in token_ids]
                        if fields.return_token_strs
                        else None
                    ),
                }
        await answer_json(scope, send, answer)


@dataclass(frozen=True)
class Detokenize:
    """The text of token ids."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        service = self.service
        with service.one_more():
            body = await read_body(scope, receive, service.options, service.bodies)
            fields = parse(body, DetokenizeRequest)
            async with service.host.use(service.model_name(fields.model)) as model:
                text = model.decode(fields.tokens)
        await answer_json(scope, send, {"prompt": text})
