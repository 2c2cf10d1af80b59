"""The engine's text side: requests in text, chat or token ids become events with text.

Encodes prompts, turns sampled tokens into whole characters, finds stop strings. Everything that decides which
token comes next lies below, in `Engine`; this only reads what it says, and ends a choice at a stop string.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from stoker.api.chat import Chat, Message
from stoker.api.errors import ModelFormatError, PromptTooLongError, RequestError
from stoker.api.events import DoneEvent, EmbeddingEvent, Event, PromptEvent, TokenLogprob, TokensEvent, Usage
from stoker.api.protocols import SeedSource
from stoker.api.request import Pooling, Request, SamplingParams
from stoker.engine.choice_text import ChoiceText
from stoker.engine.engine import Engine
from stoker.engine.plan import Scores
from stoker.engine.scheduler import Output
from stoker.engine.sequence import Sequence, Standing
from stoker.grammar.guide import Guides
from stoker.tokenizer import StopStrings, Tokenizer

GuidesOf = Callable[[SamplingParams], Guides | None]
EncodeChat = Callable[[Chat], list[int]]


@dataclass(frozen=True, slots=True)
class ScoresEvent:
    """The next scores of a request opened by `open_score`; `done` with the last."""

    request_id: str
    scores: Scores
    done: bool


class _OpenChoice:
    """What an unfinished choice has gathered since its last event."""

    __slots__ = ("_undecoded", "flows", "logprobs", "streams", "text", "token_ids", "total")

    def __init__(self, tokenizer: Tokenizer, sequence: Sequence, *, streams: bool) -> None:
        params = sequence.params
        self.text = ChoiceText(tokenizer, params)
        self.streams = streams  # send tokens as they come; else all at the end
        # Guides write tokens without events of their own, and end an answer at a token that is part of it.
        # Until its last token nothing is ever gathered.
        self.flows = streams and not params.stop and sequence.guide is None
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.total = 0  # tokens, sent ones included
        self._undecoded: list[int] = []
        if sequence.given:  # said elsewhere: brings the text to where it was, and says nothing
            self.total = sequence.given
            self.text.push(sequence.output_ids[: sequence.given].tolist())
            self.text.take()

    def add(self, output: Output, *, to_stop: bool) -> None:
        """Take the tokens of a step; with `to_stop` those up to the one that completes a stop string, in
        their text."""
        sequence, token_id, logprob, top = output[:4]
        assert token_id is not None
        last = len(output.written)
        for i, token in enumerate((token_id, *output.written)):
            if token < 0:  # the sampler found none; the sequence has ended in error
                return
            self.total += 1
            self.token_ids.append(token)
            self._undecoded.append(token)
            if self.logprobs is not None:
                if i:
                    logprob, top = output.written_logprobs[i - 1]
                self.logprobs.append(TokenLogprob(token, logprob, top))
            # The token that ends an answer may be no text: `_finish` knows.
            if to_stop and (i < last or sequence.finish_reason is None):
                self.decode()
                if self.text.stop_string is not None:
                    return

    def flow(self, output: Output) -> TokensEvent:
        """The event of a token that is not the last, of a choice that `flows`; `add` to `event` in one."""
        sequence, token_id, logprob, top = output[:4]
        assert token_id is not None
        self.total += 1
        self.text.push([token_id])
        logprobs = None if self.logprobs is None else (TokenLogprob(token_id, logprob, top),)
        return TokensEvent(sequence.request_id, sequence.choice, (token_id,), self.text.take(), logprobs)

    def decode(self, *, without_last: bool = False) -> None:
        """Make text of the tokens that came since the last time; the last one can be left out of it."""
        tokens, self._undecoded = self._undecoded, []
        self.text.push(tokens[:-1] if without_last else tokens)

    def event(self, request_id: str, choice: int) -> TokensEvent:
        """What was gathered, which is then forgotten."""
        token_ids, self.token_ids = tuple(self.token_ids), []
        logprobs = None
        if self.logprobs is not None:
            logprobs, self.logprobs = tuple(self.logprobs), []
        return TokensEvent(request_id, choice, token_ids, self.text.take(), logprobs)


@dataclass(slots=True)
class _OpenRequest:
    """What all choices of a request have in common."""

    streams: bool
    unfinished: int  # choices
    warnings: tuple[str, ...] = ()
    scoring: str | None = None  # under which id its prompt is being scored; its other events wait for that


@dataclass(slots=True)
class _Scoring:
    """A prompt that is scored beside its request's answer."""

    request_id: str
    prompt_ids: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    held: list[Event | ScoresEvent] = field(default_factory=list)  # of its request, until it is complete

    def add(self, scores: Scores) -> None:
        """The next part."""
        ids = self.prompt_ids[scores.first : scores.first + len(scores.logprobs)]
        for row, token_id in enumerate(ids):
            top = zip(scores.top_ids[row].tolist(), scores.top_logprobs[row].tolist(), strict=True)
            self.logprobs.append(TokenLogprob(token_id, float(scores.logprobs[row]), tuple(top)))


class TextEngine:
    """Wraps an `Engine`; whoever steps this must not step that. One thread at a time, except for `encode`."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        seeds: SeedSource,
        name: str,
        encode_chat: EncodeChat | None = None,
        guides_of: GuidesOf | None = None,
        pooling: Pooling | None = "mean",
        notes: tuple[str, ...] = (),
    ) -> None:
        """`notes`: what a user should be told of how it was loaded. `encode_chat` turns messages into token
        ids by the model's template; none: chats are refused. `guides_of` compiles what an answer must look
        like; none: that is refused. `pooling`: what embeddings are made by unless a request says otherwise;
        none: every request must.
        """
        if engine.vocabulary != tokenizer.vocab_size:
            raise ModelFormatError(
                f"the model has {engine.vocabulary} logits, its tokenizer {tokenizer.vocab_size} tokens; "
                "allowed: as many of one as of the other"
            )
        self.engine = engine
        self.tokenizer = tokenizer
        self.name = name
        self.notes = notes
        self.pooling = pooling
        self._seeds = seeds
        self._encode_chat = encode_chat
        self._guides_of = guides_of
        self._choices: dict[int, _OpenChoice] = {}  # by sequence number, made when its first token comes
        self._requests: dict[str, _OpenRequest] = {}  # by request id, while open
        self._scoring: dict[str, _Scoring] = {}  # by the id of the scoring: prompts scored for a request

    def with_engine(self, engine: Engine) -> TextEngine:
        """The same around another engine of the same model; one of the two is stepped at a time."""
        return TextEngine(
            engine,
            self.tokenizer,
            seeds=self._seeds,
            name=self.name,
            encode_chat=self._encode_chat,
            guides_of=self._guides_of,
            pooling=self.pooling,
            notes=self.notes,
        )

    @property
    def busy(self) -> bool:
        """True while a request is open."""
        return self.engine.busy

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt. Touches nothing of the engine, so any thread may call it.

        Raises `RequestError`, `TemplateError` for a chat that the model's template does not take,
        `PromptTooLongError` for a text so long that it need not be encoded to know.
        """
        prompt = request.prompt
        if isinstance(prompt, str):
            self._refuse_if_surely_too_long(prompt)
            return self.tokenizer.encode(prompt)
        if request.kind == "tokens":
            assert isinstance(prompt, tuple)
            return [token for token in prompt if not isinstance(token, Message)]
        if self._encode_chat is None:
            raise RequestError(
                f"{self.name} has no chat template; allowed: a prompt of text or token ids",
                hint="use generate with the whole text",
            )
        if not isinstance(prompt, Chat):
            prompt = Chat(tuple(message for message in prompt if isinstance(message, Message)))
        return self._encode_chat(prompt)

    def encode_prediction(self, request: Request) -> tuple[int, ...]:
        """The token ids of what the answer may be like. Raises `PromptTooLongError` for what no answer can
        be."""
        if not request.prediction:
            return ()
        self._refuse_if_surely_too_long(request.prediction, "prediction")
        ids = tuple(self.tokenizer.encode(request.prediction, add_special=False))
        if len(ids) > self.engine.context_tokens:
            raise PromptTooLongError(
                f"the prediction has {len(ids)} tokens; allowed: at most {self.engine.context_tokens}"
            )
        return ids

    def _refuse_if_surely_too_long(self, text: str, what: str = "prompt") -> None:
        """Encoding 10 MB takes half a minute; that no token has more than so many bytes is known before."""
        context_tokens, token_bytes = self.engine.context_tokens, self.tokenizer.max_token_bytes
        if len(text) * 4 <= context_tokens * token_bytes:  # a character has at most 4 bytes
            return
        # "replace" writes a lone surrogate as one byte: fewer than it will have, so that this stays a bound.
        least_tokens = -(-len(text.encode("utf-8", "replace")) // token_bytes)
        if least_tokens > context_tokens:
            raise PromptTooLongError(
                f"the {what} has at least {least_tokens} tokens; allowed: at most {context_tokens}"
            )

    def guides(self, params: SamplingParams) -> Guides | None:
        """What `params` demand of an answer, compiled; none if nothing. May take a second when it is new, and
        any thread may call it. Raises `RequestError` for what cannot be enforced."""
        if params.constraint is None and params.thinking is None:
            return None
        if self._guides_of is None:
            raise RequestError(f"{self.name} was loaded without grammars: no constraint can be enforced")
        return self._guides_of(params)

    def open(
        self,
        request: Request,
        prompt_ids: list[int],
        *,
        streams: bool = True,
        deadline: int | None = None,
        guides: Guides | None = None,
        prediction: tuple[int, ...] | None = None,
    ) -> None:
        """Queue a request whose prompt `encode` made into `prompt_ids`. Raises like `Engine.add`.

        `streams` false: each choice sends its tokens in one event at its end, which costs less.
        `deadline`: the request's, as a number that grows with time: the caller has the clock. `guides`: what
        `self.guides` said, if that was asked before, in another thread. `prediction`: the request's, if it
        was encoded before.
        """
        params = request.sampling
        salt = request.cache_salt.encode("utf-8", "surrogatepass")
        if prediction is None:
            prediction = self.encode_prediction(request)
        standing = Standing(request.priority, request.tenant, salt, deadline, request.background, prediction)
        if request.pooling is not None:
            _must_be_plain(params)
            self.engine.add_embedding(request.request_id, prompt_ids, request.pooling, standing=standing)
            return
        StopStrings(params.stop)  # refuses what it refuses now, before anything is queued
        if guides is None:
            guides = self.guides(params)
        seed = self._seeds.draw() if params.seed is None else params.seed
        unfinished = params.n - sum(given is None for given in request.resume)
        opened = _OpenRequest(streams, unfinished, () if guides is None else guides.warnings)
        if params.prompt_logprobs is not None:
            opened.scoring = self._score_prompt(request.request_id, prompt_ids, params.prompt_logprobs)
        try:
            self.engine.add(
                request.request_id, prompt_ids, params,
                seed=seed, standing=standing, resume=request.resume, guides=guides,
            )  # fmt: skip
        except Exception:
            self._drop_scoring(opened)
            raise
        self._requests[request.request_id] = opened

    def _score_prompt(self, request_id: str, prompt_ids: list[int], top_k: int) -> str:
        """Begin to score a request's prompt, under an id that no request can have."""
        number = f"{request_id}\0prompt"
        self._scoring[number] = _Scoring(request_id, prompt_ids)
        if len(prompt_ids) > 1:  # a single token comes after nothing
            try:
                self.engine.add_score(number, prompt_ids, top_k=top_k)
            except Exception:
                del self._scoring[number]
                raise
        return number

    def _drop_scoring(self, opened: _OpenRequest) -> None:
        if opened.scoring is not None and self._scoring.pop(opened.scoring, None) is not None:
            self.engine.abort(opened.scoring)

    def open_score(self, request_id: str, token_ids: list[int], *, top_k: int = 0) -> None:
        """Queue tokens to be scored; `ScoresEvent`s follow. Raises like `Engine.add_score`."""
        self.engine.add_score(request_id, token_ids, top_k=top_k)

    def step(self) -> list[Event | ScoresEvent]:
        """Advance the engine by one step; what it says, as events."""
        try:
            outputs = self.engine.step()
        except Exception:
            self._clear()  # the engine dropped every request
            raise
        events: list[Event | ScoresEvent] = []
        for output in outputs:
            if output.scores is not None:
                sequence = output.sequence
                done = sequence.finish_reason is not None
                events.append(ScoresEvent(sequence.request_id, output.scores, done))
            elif output.sequence.pooled is not None:
                events += _embedded(output)
            else:
                self._take(output, events)
        return self._in_order(events) if self._scoring else events

    def _in_order(self, events: list[Event | ScoresEvent]) -> list[Event | ScoresEvent]:
        """Put the log-probabilities of each prompt before all else of its request."""
        ordered: list[Event | ScoresEvent] = []
        for event in events:
            if isinstance(event, ScoresEvent) and event.request_id in self._scoring:
                self._scoring[event.request_id].add(event.scores)
                if event.done:
                    ordered += self._scored(event.request_id)
                continue
            opened = self._requests.get(event.request_id)
            number = f"{event.request_id}\0prompt" if opened is None else opened.scoring
            scoring = None if number is None else self._scoring.get(number)
            if scoring is None:
                ordered.append(event)
                continue
            scoring.held.append(event)
            if len(scoring.prompt_ids) == 1 and number is not None:
                ordered += self._scored(number)
        return ordered

    def _scored(self, number: str) -> list[Event | ScoresEvent]:
        scoring = self._scoring.pop(number)
        return [PromptEvent(scoring.request_id, tuple(scoring.logprobs)), *scoring.held]

    def abort(self, request_id: str) -> None:
        """Drop a request; no more events come of it. One that is not open is no error."""
        opened = self._requests.pop(request_id, None)
        if opened is not None:
            self._drop_scoring(opened)
            for sequence in self.engine.open_choices(request_id):
                self._choices.pop(sequence.number, None)
        elif (number := f"{request_id}\0prompt") in self._scoring:  # answered, but not yet scored
            del self._scoring[number]
            self.engine.abort(number)
        self.engine.abort(request_id)

    def abort_all(self) -> None:
        """Drop every request."""
        self._clear()
        self.engine.abort_all()

    def _clear(self) -> None:
        self._choices.clear()
        self._requests.clear()
        self._scoring.clear()

    def _take(self, output: Output, events: list[Event | ScoresEvent]) -> None:
        """Turn one sampled token into what is to be said about it now, if anything."""
        sequence = output.sequence
        request_id = sequence.request_id
        choice = self._choices.get(sequence.number)
        if choice is None:
            choice = _OpenChoice(self.tokenizer, sequence, streams=self._requests[request_id].streams)
            self._choices[sequence.number] = choice
        if choice.flows and sequence.finish_reason is None and not output.written:
            events.append(choice.flow(output))
            return
        choice.add(output, to_stop=bool(sequence.params.stop))
        if sequence.finish_reason is None:
            if choice.text.stop_string is None:
                if choice.streams:
                    choice.decode()
                    events.append(choice.event(request_id, sequence.choice))
                return
            self.engine.stop(sequence, choice.text.stop_string)
        self._finish(sequence, choice, events)

    def _finish(self, sequence: Sequence, choice: _OpenChoice, events: list[Event | ScoresEvent]) -> None:
        reason, stop_reason = sequence.finish_reason, sequence.stop_reason
        assert reason is not None
        # The token that ends an answer is no text, unless asked for; a stop string was cut off already.
        by_token = sequence.ended_by_token and choice.text.stop_string is None
        choice.decode(without_last=by_token and not sequence.params.include_stop_str_in_output)
        choice.text.finish()
        if choice.text.stop_string is not None:  # also when the last token allowed completed it
            reason, stop_reason = "stop", choice.text.stop_string
        events.append(choice.event(sequence.request_id, sequence.choice))
        thoughts = 0 if sequence.guide is None else sequence.guide.thought_tokens
        usage = Usage(
            sequence.prompt,
            choice.total,
            sequence.cached or 0,
            thoughts,
            sequence.drafted,
            min(sequence.accepted, choice.total),  # what came after a stop string is no part of it
        )
        opened = self._requests[sequence.request_id]
        done = DoneEvent(
            sequence.request_id, sequence.choice, reason, stop_reason, sequence.seed, usage,
            warnings=opened.warnings,
        )  # fmt: skip
        events.append(done)
        del self._choices[sequence.number]
        opened.unfinished -= 1
        if not opened.unfinished:
            del self._requests[sequence.request_id]


def _embedded(output: Output) -> list[Event]:
    sequence = output.sequence
    reason = sequence.finish_reason
    assert reason is not None
    usage = Usage(sequence.prompt, 0, sequence.cached or 0)
    events: list[Event] = []
    if output.vector is not None:
        events.append(EmbeddingEvent(sequence.request_id, output.vector))
    # No noise is drawn, so the seed says nothing.
    events.append(DoneEvent(sequence.request_id, 0, reason, sequence.stop_reason, sequence.seed, usage))
    return events


def _must_be_plain(params: SamplingParams) -> None:
    """Raise `RequestError` for what an embedding cannot have."""
    if params.n != 1:
        raise RequestError(f"n is {params.n}; allowed: 1, as an embedding has no choices")
    for name in ("constraint", "thinking", "prompt_logprobs"):
        if getattr(params, name) is not None:
            raise RequestError(f"{name} is given; allowed: none, as an embedding has no answer")
