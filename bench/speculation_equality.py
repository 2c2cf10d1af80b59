"""Whether drafts change an answer: every drafter beside plain decoding, on as many prompts as there are.

Usage: python -m bench.speculation_equality MODEL --prompts FILE.jsonl [--limit N] [--drafters ngram,auto]
           [--samplings greedy,schema] [--answer-tokens N] [--threads N] [--draft-head FILE]
           [--draft-model MODEL]

Each line of the file is an object whose "prompt" is asked as a chat; lines without one are passed over. For
each kind of sampling the answers of plain decoding, 16 at once, are compared with those of each drafter
alone and 16 at once: token ids, text, log-probabilities, ends. Drafters are asked as if drafts cost nothing,
so that much is drafted; for `prediction` and half of `auto` the request brings the plain answer with a
gap in it.

A line of JSON on stdout for each comparison as soon as it is made, at the end one of all; progress on
stderr. The exit status is 1 if an answer differed, or if a drafter drafted nothing, alone or 16 at once, and
so showed nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stoker.api import Constraint, DoneEvent, Message, Request, SamplingParams, TokensEvent
from stoker.api.errors import StokerError
from stoker.engine import Engine
from stoker.engine.load import LoadOptions, load_text_engine
from stoker.engine.text import TextEngine
from stoker.speculation import AUTO, BOUND, DRAFTERS, OFF, drafters_of

CROWD = 16
SHOWN = 3  # unequal answers that a line names
PROGRESS_S = 10.0

_SCHEMA = {
    "type": "object",
    "properties": {
        "subject": {"type": "string", "maxLength": 60},
        "kind": {"enum": ["question", "task", "story"]},
        "steps": {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 60}},
        "number": {"type": ["integer", "null"], "minimum": 0},
    },
    "required": ["subject", "kind", "steps", "number"],
    "additionalProperties": False,
}
SAMPLINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "greedy": {"temperature": 0.0},
        "warm": {"temperature": 0.7},
        "hot": {"temperature": 1.0, "top_p": 0.9, "logprobs": 2},
        "schema": {"temperature": 0.7, "constraint": Constraint("json_schema", json.dumps(_SCHEMA))},
        "penalties": {
            "temperature": 0.7,
            "presence_penalty": 0.6,
            "frequency_penalty": 0.3,
            "repetition_penalty": 1.1,
            "logprobs": 2,
        },
    }
)


@dataclass(slots=True)
class Answer:
    """All that was said of one request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    end: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """The answers of an engine, and what its drafters did for them."""

    answers: dict[int, Answer]
    drafted_tokens: int
    accepted_tokens: int
    steps: int


def read_prompts(text: str, limit: int | None) -> list[str]:
    """The prompts of a JSONL file's text, at most `limit`. Raises `ValueError` naming a bad line."""
    found: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):  # only these: JSON may hold U+2028 as it is
        if limit is not None and len(found) == limit:
            break
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        prompt = value.get("prompt") if isinstance(value, dict) else None
        if isinstance(prompt, str) and prompt:
            found.append(prompt)
    if not found:
        raise ValueError('no line has a "prompt"')
    return found


class Comparison:
    """One model, its prompts, and one comparison after the other on them."""

    def __init__(self, loaded: TextEngine, prompts: Sequence[str], answer_tokens: int) -> None:
        self._loaded = loaded
        self._prompts = prompts
        self._answer_tokens = answer_tokens

    def rows(self, samplings: Sequence[str], drafters: Sequence[str]) -> Iterator[dict[str, Any]]:
        """A row for each sampling, drafter and company, as soon as it is known."""
        for sampling in samplings:
            plain = self._ask(OFF, sampling, CROWD, {}, f"{sampling}, plain")
            for name in drafters:
                for streams in (1, CROWD):
                    yield self._row(name, sampling, streams, plain)

    def _row(self, name: str, sampling: str, streams: int, plain: Asked) -> dict[str, Any]:
        row: dict[str, Any] = {"sampling": sampling, "drafter": name, "streams": streams}
        started_s = time.monotonic()
        try:
            found = self._ask(
                name, sampling, streams, self._predictions(name, plain), f"{sampling}, {name} x {streams}"
            )
        except StokerError as error:  # a broken step ends every answer: as unequal as can be
            return row | {"prompts": len(self._prompts), "unequal": len(self._prompts), "error": str(error)}
        unequal = [i for i, answer in plain.answers.items() if found.answers.get(i, Answer()) != answer]
        return row | {
            "prompts": len(self._prompts),
            "unequal": len(unequal),
            "first_unequal": [
                {"prompt": i, "token": _first_difference(plain.answers[i], found.answers.get(i, Answer()))}
                for i in unequal[:SHOWN]
            ],
            "drafted_tokens": found.drafted_tokens,
            "accepted_tokens": found.accepted_tokens,
            "steps": found.steps,
            "plain_steps": plain.steps if streams == CROWD else None,
            "seconds": round(time.monotonic() - started_s, 1),
        }

    def _predictions(self, name: str, plain: Asked) -> dict[int, str]:
        """By prompt: the plain answer without a few letters in its middle."""
        if name not in ("prediction", AUTO):
            return {}
        found = {}
        for i, answer in plain.answers.items():
            if name != AUTO or i % 2:
                middle = len(answer.text) // 2
                found[i] = answer.text[:middle] + answer.text[middle + 5 :]
        return found

    def _ask(
        self, drafters: str, sampling: str, streams: int, predictions: Mapping[int, str], label: str
    ) -> Asked:
        """Answer all prompts with new drafters and an empty cache, so many at once."""
        old = self._loaded.engine
        bound = {one.name: one for one in old.offered if one.name in BOUND}
        made = Engine(
            old.interpreter,
            old.sampler,
            old.options,
            drafters=drafters_of(drafters, bound),
            draft_cost=_Free(),
        )
        engine = self._loaded.with_engine(made)
        progress = _Progress(label, len(self._prompts))
        waiting = list(reversed(range(len(self._prompts))))
        answers: dict[int, Answer] = {}
        opened = 0
        while waiting or opened:
            while waiting and opened < streams:
                number = waiting.pop()
                request = self._request(number, sampling, predictions.get(number, ""))
                engine.open(request, engine.encode(request))
                answers[number] = Answer()
                opened += 1
            for event in engine.step():  # whose time is never told, so that drafting never loses
                if isinstance(event, TokensEvent | DoneEvent):
                    opened -= _hear(answers[int(event.request_id)], event)
            progress.show(len(self._prompts) - len(waiting) - opened)
        made.check()
        stats = made.stats()
        return Asked(answers, stats.drafted_tokens, stats.accepted_tokens, stats.steps)

    def _request(self, number: int, sampling: str, prediction: str) -> Request:
        params = SamplingParams(max_tokens=self._answer_tokens, seed=number, **SAMPLINGS[sampling])
        message = Message("user", self._prompts[number])
        return Request(str(number), (message,), params, prediction=prediction)


def _hear(answer: Answer, event: TokensEvent | DoneEvent) -> bool:
    """Enter what an event says; whether it was the last one."""
    if isinstance(event, TokensEvent):
        answer.token_ids += event.token_ids
        answer.text += event.text
        answer.logprobs += event.logprobs or ()
        return False
    answer.end = (event.finish_reason, event.stop_reason, event.seed, event.usage.completion_tokens)
    return True


def _first_difference(one: Answer, other: Answer) -> int | None:
    """The place of the first token that differs; none if something else does."""
    pairs = zip(one.token_ids, other.token_ids, strict=False)
    differing = [place for place, (a, b) in enumerate(pairs) if a != b]
    if differing:
        return differing[0]
    lengths = len(one.token_ids), len(other.token_ids)
    return min(lengths) if len(set(lengths)) > 1 else None


class _Progress:
    """Now and then a line on stderr."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._shown_s = time.monotonic()

    def show(self, done: int) -> None:
        if time.monotonic() - self._shown_s >= PROGRESS_S:
            self._shown_s = time.monotonic()
            print(f"{self._label}: {done} of {self._total}", file=sys.stderr)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All rows in one: how many answers were compared, how many differed, who drafted nothing."""
    drafted: Counter[str] = Counter()
    for row in rows:
        drafted[f"{row['drafter']} x {row['streams']}"] += row.get("drafted_tokens", 0)
    return {
        "compared": sum(row["prompts"] for row in rows),
        "unequal": sum(row["unequal"] for row in rows),
        "drafted_nothing": sorted(name for name, tokens in drafted.items() if not tokens),
    }


def main() -> int:
    """Compare, and say how it went; the exit status."""
    options = _options()
    prompts = read_prompts(options.prompts.read_text(encoding="utf-8"), options.limit)
    load = LoadOptions(
        threads=options.threads, draft_head=options.draft_head, draft_model=options.draft_model
    )
    loaded = load_text_engine(options.model, load, seeds=_OneSeed())
    of_model = [one.name for one in loaded.engine.offered if one.name in BOUND]
    drafters = options.drafters or [*DRAFTERS, *of_model, AUTO]
    rows: list[dict[str, Any]] = []
    comparison = Comparison(loaded, prompts, options.answer_tokens)
    try:
        for row in comparison.rows(options.samplings, drafters):
            rows.append(row)
            print(json.dumps(row), flush=True)
    except KeyboardInterrupt:
        print("interrupted: what follows is of the comparisons above", file=sys.stderr)
    found = summary(rows)
    print(json.dumps(found))
    return 1 if not rows or found["unequal"] or found["drafted_nothing"] else 0


class _Free:
    """Drafts cost nothing, so that as many as there is room for are verified."""

    def predict_ms(self, tokens: int, *, streams: int) -> float:
        return 1.0


class _OneSeed:
    def draw(self) -> int:
        return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="every drafter beside plain decoding, answer by answer")
    parser.add_argument("model", help="a name or a path")
    parser.add_argument("--prompts", type=Path, required=True, help='JSONL whose objects have a "prompt"')
    parser.add_argument("--limit", type=int, help="only so many prompts, from the start")
    parser.add_argument("--drafters", type=_names((*DRAFTERS, *BOUND, AUTO)), help="all that the model has")
    parser.add_argument("--draft-head", help="as for `stoker serve`")
    parser.add_argument("--draft-model", help="as for `stoker serve`")
    parser.add_argument("--samplings", type=_names(SAMPLINGS), default=list(SAMPLINGS))
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def _names(known: Iterable[str]) -> Any:
    allowed = tuple(known)

    def read(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
