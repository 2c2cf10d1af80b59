"""Prompts to token ids in the parent, so that the worker's loop never waits for text."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stoker.api.chat import Chat, Message
from stoker.api.errors import PromptTooLongError, RequestError
from stoker.api.request import Prompt
from stoker.tokenizer import Tokenizer, load_tokenizer
from stoker.weights.gguf import GGUFFile

if TYPE_CHECKING:
    from stoker.tokenizer.chat import ChatTemplate

# A thread costs 0.1 ms and more in a busy process, these characters about 1 ms.
_INLINE_CHARS = 8192
# A template that once took longer is run in a thread from then on: it may be one that can be made to loop.
_SLOW_S = 0.005


class PromptEncoder:
    """A model's tokenizer and chat template, in words of prompts. Threads may share one."""

    def __init__(self, tokenizer: Tokenizer, *, name: str, context_tokens: int) -> None:
        """`name` and `context_tokens` are for messages and for refusing what cannot fit."""
        self.tokenizer = tokenizer
        self._name = name
        self.context_tokens = context_tokens  # most of a prompt; known once a worker is ready
        self._template: ChatTemplate | None = None  # compiled when the first chat comes
        self._template_is_slow = True  # until it has shown that it is not
        self._lock = threading.Lock()

    @property
    def has_chat_template(self) -> bool:
        """False for a base model."""
        return bool(self.tokenizer.chat_template)

    async def encode(self, prompt: Prompt, *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a prompt, in a thread if that may take a while. Raises `RequestError` (also
        `PromptTooLongError`), `TemplateError`."""
        if self._is_quick(prompt):
            return self.encode_now(prompt, add_generation_prompt=add_generation_prompt)
        return await asyncio.to_thread(self.encode_now, prompt, add_generation_prompt=add_generation_prompt)

    def encode_now(self, prompt: Prompt, *, add_generation_prompt: bool = True) -> list[int]:
        """As `encode`, here and now."""
        if isinstance(prompt, str):
            self._refuse_if_surely_too_long(prompt)
            return self.tokenizer.encode(prompt)
        chat = as_chat(prompt, add_generation_prompt=add_generation_prompt)
        if chat is None:
            assert isinstance(prompt, tuple)
            return self._checked(prompt)
        if not self.has_chat_template:
            raise RequestError(
                f"{self._name} has no chat template; allowed: a prompt of text or token ids",
                hint="use the completions path with the whole text",
            )
        from stoker.tokenizer.chat import chat_values

        template = self._compiled()
        started_s = time.perf_counter()
        ids = template.encode(**chat_values(chat))
        if _chars(chat) <= _INLINE_CHARS:
            self._template_is_slow = time.perf_counter() - started_s > _SLOW_S
        return ids

    def _is_quick(self, prompt: Prompt) -> bool:
        if isinstance(prompt, str):
            return len(prompt) <= _INLINE_CHARS
        chat = as_chat(prompt)
        return chat is None or (not self._template_is_slow and _chars(chat) <= _INLINE_CHARS)

    def _compiled(self) -> ChatTemplate:
        with self._lock:
            if self._template is None:
                from stoker.tokenizer.chat import ChatTemplate

                self._template = ChatTemplate(self.tokenizer)
            return self._template

    def _checked(self, prompt: tuple[object, ...]) -> list[int]:
        """Token ids that are such. The message of a wrong one is the engine's."""
        if len(prompt) > self.context_tokens:  # a million are not looked at one by one, to be refused
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens; allowed: at most {self.context_tokens}"
            )
        size = self.tokenizer.vocab_size
        ids = []
        for token in prompt:
            if isinstance(token, bool) or not isinstance(token, int):
                raise RequestError(f"prompt has {token!r:.80}; allowed: whole numbers")
            if not 0 <= token < size:
                raise RequestError(f"prompt has token id {token}; allowed: 0 to {size - 1}")
            ids.append(token)
        return ids

    async def encode_prediction(self, text: str) -> tuple[int, ...]:
        """Token ids of what an answer may be like. Raises `PromptTooLongError` for what no answer can be."""
        if not text:
            return ()
        if len(text) <= _INLINE_CHARS:
            return self._encode_prediction(text)
        return await asyncio.to_thread(self._encode_prediction, text)

    def _encode_prediction(self, text: str) -> tuple[int, ...]:
        self._refuse_if_surely_too_long(text, "prediction")
        ids = tuple(self.tokenizer.encode(text, add_special=False))
        if len(ids) > self.context_tokens:
            raise PromptTooLongError(
                f"the prediction has {len(ids)} tokens; allowed: at most {self.context_tokens}"
            )
        return ids

    def _refuse_if_surely_too_long(self, text: str, what: str = "prompt") -> None:
        """Encoding 10 MB takes seconds; that no token has more than so many bytes is known before."""
        token_bytes = self.tokenizer.max_token_bytes
        if len(text) <= self.context_tokens * token_bytes // 4:  # a character has at most 4 bytes
            return
        # "replace" writes a lone surrogate as one byte: fewer than it will have, so that this stays a bound.
        least_tokens = -(-len(text.encode("utf-8", "replace")) // token_bytes)
        if least_tokens > self.context_tokens:
            raise PromptTooLongError(
                f"the {what} has at least {least_tokens} tokens; allowed: at most {self.context_tokens}"
            )


def as_chat(prompt: Prompt, *, add_generation_prompt: bool = True) -> Chat | None:
    """A prompt of messages as a conversation; none for text and token ids. A `Chat` is taken as it is."""
    if isinstance(prompt, Chat):
        return prompt
    if isinstance(prompt, str) or not prompt or not isinstance(prompt[0], Message):
        return None
    messages = tuple(message for message in prompt if isinstance(message, Message))
    return Chat(messages, add_generation_prompt=add_generation_prompt)


def _chars(chat: Chat) -> int:
    return sum(len(message.content) for message in chat.messages) + sum(
        len(tool.parameters) + len(tool.description) for tool in chat.tools
    )


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model file: its table is mapped, the weights are not touched. Raises
    `ModelFormatError`."""
    with GGUFFile.open(path) as file:
        return load_tokenizer(file.metadata, file.header_digest())
