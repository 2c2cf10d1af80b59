"""A stream's pieces as bytes of server-sent events. The hot path: what does not change is formatted once.

Between its constant ends a piece has one string, encoded by msgspec; nothing is validated on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from stoker.api.errors import EngineError, RequestError
from stoker.api.events import DoneEvent, Event, PromptEvent, TokensEvent
from stoker.server.asked import Asked
from stoker.server.deltas import delta_bytes, finish_reason
from stoker.server.errors import Problem, Refusal
from stoker.server.prompt_logprobs import echoed_logprobs, prompt_entries
from stoker.server.shapes import Shape, TokenBytes
from stoker.server.usage import UsageCount

DONE = b"data: [DONE]\n\n"
_END = b"\n\n"


class ChunkWriter:
    """Formats one answer's stream. `tokens` of a choice come before its `done`; then `closing` once."""

    def __init__(self, shape: Shape, asked: Asked, *, head: dict[str, Any], token_bytes: TokenBytes) -> None:
        """`head`: what every piece has before its choices (id, created, model, ...)."""
        self._shape = shape
        self._asked = asked
        self._token_bytes = token_bytes
        self._encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
        self._usage = UsageCount(asked.n)
        start = b"data: " + self._encode({**head, "object": shape.chunk_object})[:-1] + b',"choices":['
        self._start = start
        self._heads = [start + b'{"index":%d,' % choice for choice in range(asked.choices)]
        self._text_heads = [piece + shape.before_text for piece in self._heads]
        # What follows the choices; with the usage so far it is made anew each time.
        self._close = b',"usage":null}' if asked.include_usage else b"}"
        self._tail = shape.after_text + b',"logprobs":null,"finish_reason":null}]' + self._close + _END
        self._is_plain = not (
            asked.return_token_ids
            or asked.continuous_usage
            or asked.parser is not None
            or asked.requests[0].sampling.logprobs is not None
            or asked.requests[0].sampling.prompt_logprobs is not None
        )
        self._parsers = asked.parsers()
        self._open_choices = asked.choices
        self._warnings: dict[str, None] = {}  # in the order they came in
        self._counts = [0] * asked.choices  # tokens so far; for the usage in each piece
        self._offsets = [0] * asked.choices  # characters so far; for text_offset

    def opening(self) -> bytes:
        """What comes before the first token: each choice's role, or the prompt that is echoed."""
        asked = self._asked
        pieces = []
        for choice in range(asked.choices):
            prompt = choice // asked.n
            ids = self._prompt_ids(prompt, choice)
            if self._shape.role is not None:
                pieces.append(self._piece(choice, self._shape.role, b"", of_all=ids))
            elif (asked.echoes is not None and not asked.echo_logprobs) or ids:
                text = asked.echoes[prompt] if asked.echoes is not None and not asked.echo_logprobs else ""
                self._offsets[choice] = len(text)
                pieces.append(self._piece(choice, self._text_body(text), ids))
        return b"".join(pieces)

    def pieces(self, events: Sequence[Event]) -> bytes:
        """The bytes of events, in their order. Raises `EngineError` or `Refusal` for a choice that failed."""
        if self._is_plain:
            # The same loop without its questions: a token of plain text costs one string and one join.
            encode, heads, tail = self._encode, self._text_heads, self._tail
            parts: list[bytes] = []
            for event in events:
                if isinstance(event, TokensEvent):
                    if event.text:
                        parts += (heads[event.choice], encode(event.text), tail)
                elif isinstance(event, DoneEvent):
                    parts.append(self._done(event))
            return b"".join(parts)
        return b"".join(self._event(event) for event in events)

    def closing(self) -> bytes:
        """After every choice's end: the usage, if it is wanted, and the mark that ends the stream."""
        if not self._asked.include_usage:
            return DONE
        usage = self._encode(self._usage.as_dict())
        return self._start + b'],"usage":' + usage + self._warned() + b"}" + _END + DONE

    def _event(self, event: Event) -> bytes:
        if isinstance(event, TokensEvent):
            return self._tokens(event)
        if isinstance(event, DoneEvent):
            return self._done(event)
        return self._prompt(event) if isinstance(event, PromptEvent) else b""

    def _tokens(self, event: TokensEvent) -> bytes:
        choice = event.choice
        self._counts[choice] += len(event.token_ids)
        if not event.text and not event.token_ids:
            return b""
        bodies = self._bodies(choice, event.text)
        if not bodies:
            if event.logprobs is None and not self._asked.return_token_ids:
                return b""
            bodies = [self._text_body("")]
        logprobs = b"null"
        if event.logprobs is not None:
            value = self._shape.logprobs(event.logprobs, self._token_bytes, self._offsets[choice])
            if "tokens" in value:
                self._offsets[choice] += sum(map(len, value["tokens"]))
            logprobs = self._encode(value)
        ids = b""
        if self._asked.return_token_ids:
            ids = b',"token_ids":' + self._encode(event.token_ids)
        pieces = [self._piece(choice, bodies[0], ids, logprobs=logprobs)]
        pieces += [self._piece(choice, body, b"") for body in bodies[1:]]
        return b"".join(pieces)

    def _text_body(self, text: str) -> bytes:
        return self._shape.before_text + self._encode(text) + self._shape.after_text

    def _bodies(self, choice: int, text: str) -> list[bytes]:
        """What a choice's next text is to the client: one body, or one for each part that it completes."""
        if not text:
            return []
        if not self._parsers:
            return [self._text_body(text)]
        return [delta_bytes(part, self._encode) for part in self._parsers[choice].push(text)]

    def _done(self, event: DoneEvent) -> bytes:
        check_end(event)
        self._usage.add(event)
        choice, reason = event.choice, str(event.finish_reason)
        pieces = []
        if self._parsers:
            parser = self._parsers[choice]
            pieces = [self._piece(choice, delta_bytes(part, self._encode), b"") for part in parser.finish()]
            reason = finish_reason(reason, parser)
        self._open_choices -= 1
        self._warnings.update(dict.fromkeys(event.warnings))
        is_last = not self._open_choices and not self._asked.include_usage
        end = b',"stop_reason":%b,"seed":%d' % (self._encode(event.stop_reason), event.seed)
        pieces.append(
            self._piece(
                choice,
                self._shape.no_text,
                end,
                finish_reason=self._encode(reason),
                of_all=self._warned() if is_last else b"",
            )
        )
        return b"".join(pieces)

    def _warned(self) -> bytes:
        return b',"warnings":' + self._encode(list(self._warnings)) if self._warnings else b""

    def _prompt(self, event: PromptEvent) -> bytes:
        """Log-probabilities of a prompt: in a field of their own, or with its echo."""
        asked = self._asked
        number = asked.prompt_number(event.request_id)
        field = b""
        if asked.prompt_logprobs:
            entries = prompt_entries(event.logprobs, self._token_bytes)
            field = b',"prompt_logprobs":' + self._encode(entries)
        first = number * asked.n
        if self._shape.role is not None:
            return self._piece(first, self._shape.no_text, b"", of_all=field)
        if not asked.echo_logprobs:
            return self._piece(first, self._shape.no_text, field)
        assert asked.echoes is not None
        assert asked.prompt_ids is not None
        text = asked.echoes[number]
        value = echoed_logprobs(asked.prompt_ids[number], event.logprobs, self._token_bytes, text)
        pieces = []
        for choice in range(first, first + asked.n):
            self._offsets[choice] = len(text)
            pieces.append(self._piece(choice, self._text_body(text), field, logprobs=self._encode(value)))
            field = b""
        return b"".join(pieces)

    def _piece(
        self,
        choice: int,
        body: bytes,
        extra: bytes,
        *,
        logprobs: bytes = b"null",
        finish_reason: bytes = b"null",
        of_all: bytes = b"",
    ) -> bytes:
        close = self._close
        if self._asked.continuous_usage:
            close = b',"usage":' + self._encode(self._usage_so_far()) + b"}"
        ends = b',"logprobs":%b,"finish_reason":%b' % (logprobs, finish_reason)
        return self._heads[choice] + body + ends + extra + b"}]" + of_all + close + _END

    def _prompt_ids(self, prompt: int, choice: int) -> bytes:
        asked = self._asked
        if not asked.return_token_ids or asked.prompt_ids is None or choice % asked.n:
            return b""
        return b',"prompt_token_ids":' + self._encode(asked.prompt_ids[prompt])

    def _usage_so_far(self) -> dict[str, int]:
        assert self._asked.prompt_ids is not None
        prompt_tokens = sum(map(len, self._asked.prompt_ids))
        completion_tokens = sum(self._counts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


def check_end(done: DoneEvent) -> None:
    """Raise what a choice that did not end well means: `EngineError`, `RequestError` for a constraint that
    turned out to be too large while it was followed, or `Refusal` for one that was late."""
    if done.finish_reason == "error":
        if str(done.stop_reason).startswith("the constraint"):
            raise RequestError(str(done.stop_reason))
        raise EngineError(f"choice {done.choice} failed: {done.stop_reason}")
    if done.finish_reason == "abort":
        reason = "" if done.stop_reason is None else f": {done.stop_reason}"
        raise Refusal(
            Problem(
                408,
                f"the request was aborted before its end{reason} (deadline_ms passed, or the server stops)",
                type="timeout_error",
                code="aborted",
            )
        )


def error_piece(problem: Problem) -> bytes:
    """What ends a stream that failed under way; clients of OpenAI's raise it."""
    return b"data: " + problem.body() + _END + DONE
