"""What a guess costs before it is verified: microseconds of `extend` and `propose` in a decoding step.

Usage: python -m bench.proposals [--drafters ngram,suffix] [--steps N] [--json]

No model: token ids are drawn. Each step shows a drafter the 1 to 8 tokens that the last one brought, and asks
it for a full draft. The text repeats pieces of itself and of earlier answers, so that some steps find a long
match, some a short one, and some look everywhere for nothing. Earlier answers fill whatever the drafters
keep of them twice over. Timed step by step with the thread's own CPU time, less what reading that clock
takes; medians and 99th percentiles, and of several rounds the median.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from stoker.speculation import Drafters, Opening, drafters_of

CONTEXTS_TOKENS = (100, 1000, 8000)
LIMIT_US = 30.0  # of a step of 1.4 ms on a small model, two percent
MOST = 15  # tokens a draft may have
LARGEST_STEP = 8
VOCABULARY = 49152
EARLIER_ANSWERS, ANSWER_TOKENS = 1024, 128  # twice the 65 536 tokens that a pool of answers holds
ROUNDS = 5


class Text:
    """Tokens like those of answers about one thing: new ones, and pieces of what was said before."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._said: list[int] = self._new(64)

    def tokens(self, count: int) -> list[int]:
        """The next so many."""
        found: list[int] = []
        while len(found) < count:
            length = self._random.randint(3, 24)
            if self._random.random() < 0.5:
                back = int(len(self._said) ** self._random.random())  # as often near as far
                found += self._said[-back:][:length]
            else:
                found += self._new(length)
        self._said += found[:count]
        return found[:count]

    def _new(self, count: int) -> list[int]:
        # Zipf's law, roughly: short n-grams of common tokens come again without being copied.
        return [int(VOCABULARY ** self._random.random()) for _ in range(count)]


def fill(drafters: Drafters, text: Text) -> None:
    """Answer as many requests as fill every bounded store of earlier answers."""
    for _ in range(EARLIER_ANSWERS):
        drafter = drafters.open(Opening(prompt_tokens=16))
        drafter.extend(text.tokens(16 + ANSWER_TOKENS))
        drafter.close()


def measure(drafters: Drafters, context_tokens: int, steps: int, seed: int) -> dict[str, float]:
    """One sequence of so many known tokens that goes on for `steps` steps; microseconds of a step."""
    text = Text(seed)
    fill(drafters, text)
    drafter = drafters.open(Opening(prompt_tokens=context_tokens))
    drafter.extend(text.tokens(context_tokens))
    drafter.propose(MOST)  # what is built on first use
    clock_us = _clock_us()
    step_us: list[float] = []
    proposed: list[int] = []
    for tokens in _steps(text, steps, seed):
        started_ns = time.thread_time_ns()
        drafter.extend(tokens)
        proposal = drafter.propose(MOST)
        step_us.append((time.thread_time_ns() - started_ns) / 1000 - clock_us)
        proposed.append(0 if proposal is None else len(proposal.tokens))
    drafter.close()
    step_us.sort()
    return {
        "median_us": statistics.median(step_us),
        "mean_us": statistics.fmean(step_us),
        "p99_us": step_us[len(step_us) * 99 // 100],
        "proposed_share": sum(map(bool, proposed)) / steps,
        "tokens": statistics.fmean(proposed),
    }


def _steps(text: Text, steps: int, seed: int) -> Iterator[list[int]]:
    """What each step brings: 1 to 8 tokens."""
    draw = random.Random(seed + 1)
    sizes = [draw.randint(1, LARGEST_STEP) for _ in range(steps)]
    tokens = iter(text.tokens(sum(sizes)))
    return ([next(tokens) for _ in range(size)] for size in sizes)


def _clock_us() -> float:
    """What a pair of readings measures of itself."""
    pairs = [-time.thread_time_ns() + time.thread_time_ns() for _ in range(1001)]
    return statistics.median(pairs) / 1000


def rows(names: list[str], steps: int) -> Iterator[dict[str, Any]]:
    """One row for each drafter and length of context."""
    for name in names:
        for context_tokens in CONTEXTS_TOKENS:
            (drafters,) = drafters_of(name)
            rounds = [measure(drafters, context_tokens, steps, seed) for seed in range(ROUNDS)]
            row = {key: round(statistics.median(r[key] for r in rounds), 2) for key in rounds[0]}
            yield {"drafter": name, "context_tokens": context_tokens, **row}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="microseconds of a proposal")
    parser.add_argument("--drafters", default="ngram,suffix", help="names, joined by commas")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = list(rows(arguments.drafters.split(","), arguments.steps))
    if arguments.json:
        print(json.dumps({"steps": arguments.steps, "limit_us": LIMIT_US, "rows": found}, indent=2))
        return
    print("drafter  context  median us  mean us  p99 us  proposed  tokens")
    for row in found:
        print(
            f"{row['drafter']:8} {row['context_tokens']:7} {row['median_us']:10.1f} {row['mean_us']:8.1f}"
            f" {row['p99_us']:7.1f} {row['proposed_share']:9.0%} {row['tokens']:7.1f}"
            + ("" if row["median_us"] <= LIMIT_US else f"  above {LIMIT_US:g} us")
        )


if __name__ == "__main__":
    main()
