"""`stoker bench grammar`: schemas with valid and invalid instances, and what a grammar makes of them.

A file has one JSON object on each line: `schema`, and `tests`, each with `data` and whether it is `valid`.
"""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stoker.api.constraint import Constraint
from stoker.api.errors import RequestError
from stoker.api.request import SamplingParams
from stoker.grammar.compiler import GrammarCompiler
from stoker.grammar.guide import MASK_BITS, Guide, Guides, MaskRow, mask_words
from stoker.grammar.schema.compile import compile_schema
from stoker.grammar.schema.ordering import PropertyOrder
from stoker.grammar.vocabulary import Vocabulary
from stoker.tokenizer import Tokenizer, build_tokenizer
from stoker.weights.gguf import GGUFFile

Progress = Callable[[int, int, str], None]  # (schemas done, of how many, the one under way)
MOST_ERROR_CHARS = 120


@dataclass
class _Counts:
    schemas: int = 0
    compiled: int = 0
    tested: int = 0  # compiled, and some keyword is enforced by tests on values
    valid: int = 0
    invalid: int = 0
    wrong_accepts: list[str] = field(default_factory=list)
    wrong_rejects: list[str] = field(default_factory=list)
    wrong_rejects_as_given: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    mask_us: list[float] = field(default_factory=list)
    compile_ms: list[float] = field(default_factory=list)
    refusal_us: list[float] = field(default_factory=list)


def measure_grammars(file: Path, model: Path, *, progress: Progress) -> dict[str, Any]:
    """What `stoker bench grammar` prints. Instances are of the schemas that compile.

    `wrong_reject_share` is of valid instances once their properties are in the schema's order. Masks are
    timed where the model is asked, not where the grammar forces what comes, and in time of the processor, so
    that other work on the machine does not count. Raises RequestError for a file that is not of the form.
    """
    rows = list(read_rows(file))
    with GGUFFile.open(model) as opened:
        tokenizer = build_tokenizer(opened.metadata)
    return {"file": file.name, "model": model.name, **measure_rows(rows, tokenizer, progress=progress)}


def measure_rows(rows: list[dict[str, Any]], tokenizer: Tokenizer, *, progress: Progress) -> dict[str, Any]:
    """The figures of rows that are read already, with the tokens of any tokenizer."""
    walker = _Walker(tokenizer)
    counts = _Counts()
    gc.collect()
    gc.disable()
    try:
        for done, row in enumerate(rows):
            progress(done, len(rows), row["name"])
            _measure(row, walker, counts)
    finally:
        gc.enable()
    return _figures(counts)


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file. Raises RequestError naming the line that is none."""
    try:
        lines = file.read_text("utf-8").split("\n")  # only these: JSON may hold U+2028 as it is
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            tests = [{"valid": bool(test["valid"]), "data": test["data"]} for test in row["tests"]]
            yield {"name": str(row.get("name", number)), "schema": row["schema"], "tests": tests}
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"line {number} of {file} is not of the form: {error!r}",
                hint='each line is {"schema": ..., "tests": [{"valid": true, "data": ...}]}',
            ) from error


def _measure(row: dict[str, Any], walker: _Walker, counts: _Counts) -> None:
    counts.schemas += 1
    schema = json.dumps(row["schema"])
    started = time.perf_counter()
    try:
        guides = walker.compile(schema)
    except RequestError as error:
        counts.errors[_brief(error)] += 1
        return
    counts.compile_ms.append((time.perf_counter() - started) * 1e3)
    counts.compiled += 1
    counts.tested += any("testing values" in said for said in guides.warnings)
    order = PropertyOrder(
        compile_schema(schema, walker.vocabulary.bytes_trie).schema, walker.vocabulary.bytes_trie
    )
    for test in row["tests"]:
        as_given = json.dumps(test["data"], ensure_ascii=False)
        if not test["valid"]:
            counts.invalid += 1
            ordered = json.dumps(order.ordered(test["data"]), ensure_ascii=False)
            if any(walker.accepts(guides, text, counts) for text in dict.fromkeys((as_given, ordered))):
                counts.wrong_accepts.append(row["name"])
            continue
        counts.valid += 1
        if walker.accepts(guides, as_given, counts):
            continue
        counts.wrong_rejects_as_given += 1
        ordered = json.dumps(order.ordered(test["data"]), ensure_ascii=False)
        if not walker.accepts(guides, ordered, counts):
            counts.wrong_rejects.append(row["name"])


def _brief(error: RequestError) -> str:
    return error.message.removeprefix("json_schema ")[:MOST_ERROR_CHARS]


def _figures(counts: _Counts) -> dict[str, Any]:
    return {
        "schemas": counts.schemas,
        "valid_instances": counts.valid,
        "invalid_instances": counts.invalid,
        "compiled_share": _share(counts.compiled, counts.schemas),
        "tested_share": _share(counts.tested, counts.schemas),
        "wrong_accept_share": _share(len(counts.wrong_accepts), counts.invalid),
        "wrong_reject_share": _share(len(counts.wrong_rejects), counts.valid),
        "wrong_reject_as_given_share": _share(counts.wrong_rejects_as_given, counts.valid),
        "mask_us_p50": _percentile(counts.mask_us, 50),
        "mask_us_p99": _percentile(counts.mask_us, 99),
        "masks": len(counts.mask_us),
        "refusal_us_p99": _percentile(counts.refusal_us, 99),
        "compile_ms_p50": _percentile(counts.compile_ms, 50),
        "compile_ms_p99": _percentile(counts.compile_ms, 99),
        "compile_errors": dict(counts.errors.most_common()),
        "wrong_accepts": counts.wrong_accepts,
        "wrong_rejects": counts.wrong_rejects,
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None


def _percentile(values: list[float], percent: int) -> float | None:
    return round(float(np.percentile(values, percent)), 2) if values else None


class _Walker:
    """Leads guides through texts as an engine would."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiler = GrammarCompiler(tokenizer, vocabulary=tokenizer.vocab_size)
        self.vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size)
        self._mask: MaskRow = np.zeros(mask_words(tokenizer.vocab_size), dtype=np.uint32)

    def compile(self, schema: str) -> Guides:
        """The guides of a schema. Raises RequestError."""
        guides = self._compiler.guides(SamplingParams(constraint=Constraint("json_schema", schema)))
        if guides is None:
            raise RequestError("the schema constrains nothing")
        return guides

    def accepts(self, guides: Guides, text: str, counts: _Counts) -> bool:
        """Whether the text can be generated: tokenized as the model does, or where that fails otherwise."""
        guide = guides.new()
        rest = text.encode()
        ids = self._tokenizer.encode(text, add_special=False)
        while rest:
            if guide.finished:
                return False
            if guide.forced:
                forced = guide.forced
                data = self._tokenizer.join_bytes(forced, skip_special=False)
                if not rest.startswith(data):
                    return False
                if tuple(ids[: len(forced)]) != forced:
                    after = rest[len(data) :].decode("utf-8", "replace")
                    ids = [*forced, *self._tokenizer.encode(after, add_special=False)]
                for forced_id in forced:
                    guide.push(forced_id)
                rest, ids = rest[len(data) :], ids[len(forced) :]
                continue
            self._fill(guide, counts)
            token_id = ids[0] if ids and self._may_come(guide, ids[0], counts) else None
            other = self._other(guide, rest, counts) if token_id is None else token_id
            if other is None:
                return False
            guide.push(other)
            rest = rest[len(self._tokenizer.token_bytes(other)) :]
            if token_id is None:
                ids = self._tokenizer.encode(rest.decode("utf-8", "replace"), add_special=False)
            else:
                ids = ids[1:]
        return self._may_end(guide, counts)

    def _fill(self, guide: Guide, counts: _Counts) -> None:
        started = time.thread_time_ns()
        guide.fill_mask(self._mask)
        counts.mask_us.append((time.thread_time_ns() - started) / 1e3)

    def _may_come(self, guide: Guide, token_id: int, counts: _Counts) -> bool:
        if not int(self._mask[token_id // MASK_BITS]) >> (token_id % MASK_BITS) & 1:
            return False
        started = time.thread_time_ns()
        refused = guide.refuses(token_id)
        counts.refusal_us.append((time.thread_time_ns() - started) / 1e3)
        return not refused

    def _other(self, guide: Guide, rest: bytes, counts: _Counts) -> int | None:
        """The longest token of the mask that the text goes on with."""
        for length in range(min(len(rest), self._tokenizer.max_token_bytes), 0, -1):
            token_id = self.vocabulary.token_of(rest[:length])
            if token_id is not None and self._may_come(guide, token_id, counts):
                return token_id
        return None

    def _may_end(self, guide: Guide, counts: _Counts) -> bool:
        if guide.finished:
            return True
        if guide.forced:
            return False
        self._fill(guide, counts)
        return any(self._may_come(guide, token_id, counts) for token_id in self._tokenizer.stop_ids)
