"""Stand-ins that need no model file: a model whose answers betray every mistake in the cache, and its
company.

`ScriptedInterpreter` keeps token ids where a real model keeps keys and values: in the slots of the blocks it
is told to write. Its logits are a hash of what it reads back through the block table, so a wrong block, a
missing copy, a slot that was never written or overwritten by another sequence changes the answer (a chance of
1 in 2^32 per position to go unnoticed) or fails on the spot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stoker.api.chat import Chat
from stoker.api.errors import EngineError
from stoker.engine.engine import Engine, EngineOptions
from stoker.engine.scheduler import SchedulerOptions
from stoker.engine.text import TextEngine
from stoker.kernels.interpreter import check_batch
from stoker.kernels.program import BLOCK_TOKENS, Batch, Float32, UInt8
from stoker.sampling.reference import ReferenceSampler
from stoker.sampling.rows import SampleResult, SampleRow

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so multiplying by it permutes the 64-bit numbers
_EMPTY = -1
HIDDEN_WIDTH = 8  # of the scripted model's hidden states: its first logits, if its vocabulary were so small


class ScriptedInterpreter:
    """A deterministic model without weights: logits of a row depend on all token ids up to it, in order."""

    def __init__(
        self, *, vocabulary: int = 300, num_blocks: int = 256, context_tokens: int = 1 << 20
    ) -> None:
        self.vocabulary = vocabulary
        self.num_blocks = num_blocks
        self.block_bytes = BLOCK_TOKENS * 16
        self.context_tokens = context_tokens
        self.batches: list[Batch] = []
        self.fail_at_run: int | None = None  # the run (from 0) that raises, for tests of failure
        self.hidden_states: Float32 = np.empty((0, HIDDEN_WIDTH), np.float32)
        self._slots = np.full((num_blocks, BLOCK_TOKENS, 2), _EMPTY, np.int64)  # (token id, position)

    def run(self, batch: Batch) -> Float32:
        """Write the batch's tokens into their slots; logits [R, vocabulary] of the rows wanted."""
        check_batch(
            batch, vocabulary=self.vocabulary, num_blocks=self.num_blocks, context_tokens=self.context_tokens
        )
        self.batches.append(batch)
        if self.fail_at_run == len(self.batches) - 1:
            raise RuntimeError("scripted failure")
        sequence_of = np.repeat(np.arange(batch.sequences), np.diff(batch.query_start))
        blocks = batch.block_tables[sequence_of, batch.positions // BLOCK_TOKENS]
        self._slots[blocks, batch.positions % BLOCK_TOKENS] = np.stack(
            [batch.token_ids, batch.positions], axis=1
        )
        copied = batch.kv_copies[:, 0]
        blocks = batch.block_tables[batch.kv_copies[:, 1], batch.positions[copied] // BLOCK_TOKENS]
        self._slots[blocks, batch.positions[copied] % BLOCK_TOKENS] = np.stack(
            [batch.token_ids[copied], batch.positions[copied]], axis=1
        )
        logits = np.empty((len(batch.logit_rows), self.vocabulary), np.float32)
        self.hidden_states = np.empty((len(batch.hidden_rows), HIDDEN_WIDTH), np.float32)
        for wanted, rows in ((logits, batch.logit_rows), (self.hidden_states, batch.hidden_rows)):
            for out, row in zip(wanted, rows.tolist(), strict=True):
                table = batch.block_tables[sequence_of[row]]
                out[:] = scripted_logits(self._read(table, int(batch.positions[row]) + 1), len(out))
        return logits

    @property
    def draft_states(self) -> Float32:
        """Nothing stands beside the hidden states."""
        return self.hidden_states

    def copy_block(self, source: int, destination: int) -> None:
        """Copy one block's slots."""
        self._slots[destination] = self._slots[source]

    def read_block(self, block: int) -> UInt8:
        """[block_bytes] one block's slots."""
        return self._slots[block].reshape(-1).view(np.uint8).copy()

    def write_block(self, block: int, payload: UInt8) -> None:
        """Put such bytes into a block."""
        self._slots[block] = payload.view(np.int64).reshape(BLOCK_TOKENS, 2)

    def _read(self, table: npt.NDArray[np.int32], tokens: int) -> npt.NDArray[np.int64]:
        read = self._slots[table[: -(-tokens // BLOCK_TOKENS)]].reshape(-1, 2)[:tokens]
        if not np.array_equal(read[:, 1], np.arange(tokens)):
            raise EngineError(f"read positions {read[:, 1].tolist()} where 0 to {tokens - 1} should be")
        return read[:, 0]


def scripted_logits(token_ids: npt.NDArray[np.int64], vocabulary: int) -> Float32:
    """What `ScriptedInterpreter` says after these tokens, without any cache: [vocabulary], in [0, 8)."""
    with np.errstate(over="ignore"):
        places = (np.arange(len(token_ids), dtype=np.uint64) + np.uint64(1)) * _MULTIPLIER
        mixed = _mix(token_ids.astype(np.uint64) * np.uint64(2654435761) + places).sum(dtype=np.uint64)
        words = _mix(np.arange(vocabulary, dtype=np.uint64) * _MULTIPLIER + mixed)
    return ((words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 21)).astype(np.float32)


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(31))) * _MULTIPLIER
    return (words ^ (words >> np.uint64(29))) * _MULTIPLIER


class InstantInterpreter:
    """Returns the same zeros at once: what is left of a step's time is the engine's own."""

    def __init__(self, *, vocabulary: int = 64, num_blocks: int = 4096, rows: int = 64) -> None:
        self.vocabulary = vocabulary
        self.num_blocks = num_blocks
        self.block_bytes = 0
        self._logits = np.zeros((rows, vocabulary), np.float32)

    def run(self, batch: Batch) -> Float32:
        """Zeros [R, vocabulary]."""
        return self._logits[: len(batch.logit_rows)]

    def copy_block(self, source: int, destination: int) -> None:
        """Nothing is kept, so nothing is copied."""

    def read_block(self, block: int) -> UInt8:
        """No bytes."""
        return np.empty(0, np.uint8)

    def write_block(self, block: int, payload: UInt8) -> None:
        """Nothing is kept."""


class GreedySampler:
    """The likeliest token and nothing else, in one numpy call."""

    def sample(self, logits: Float32, rows: Sequence[SampleRow]) -> SampleResult:
        """token_ids [R]; no logprobs."""
        nothing = np.empty((len(rows), 0), np.int32)
        return SampleResult(
            logits.argmax(axis=1).astype(np.int32),
            np.zeros(len(rows), np.float32),
            nothing,
            nothing.astype(np.float32),
        )


class RecitingInterpreter:
    """Says a fixed text after a prompt of known length, whatever the prompt was; then its last token for
    ever.
    """

    def __init__(self, token_ids: Sequence[int], *, prompt_tokens: int, num_blocks: int = 64) -> None:
        self.vocabulary = ByteTokenizer.vocab_size
        self.num_blocks = num_blocks
        self.block_bytes = 0
        self._script = token_ids
        self._prompt_tokens = prompt_tokens

    def run(self, batch: Batch) -> Float32:
        """A one at the next token of the script, zeros elsewhere: [R, vocabulary]."""
        logits = np.zeros((len(batch.logit_rows), self.vocabulary), np.float32)
        for out, position in zip(logits, batch.positions[batch.logit_rows].tolist(), strict=True):
            place = min(max(position + 1 - self._prompt_tokens, 0), len(self._script) - 1)
            out[self._script[place]] = 50.0
        return logits

    def copy_block(self, source: int, destination: int) -> None:
        """Nothing is kept, so nothing is copied."""

    def read_block(self, block: int) -> UInt8:
        """No bytes."""
        return np.empty(0, np.uint8)

    def write_block(self, block: int, payload: UInt8) -> None:
        """Nothing is kept."""


class ByteTokenizer:
    """A token for each byte, then BOS, EOS and a few words: enough to cut characters and stop strings
    anywhere.
    """

    BOS, EOS = 256, 257
    WORDS = (" the", " boiler", "\n\n", " é", "STOP", " coal", "<turn>")
    TURN = 264  # a control token, as BOS and EOS are
    vocab_size = 265
    max_token_bytes = 7
    bos_id, eos_id = BOS, EOS
    add_bos = add_eos = add_space_prefix = False
    special_ids = frozenset({BOS, EOS, TURN})
    stop_ids = (EOS,)
    chat_template = None

    def __init__(self) -> None:
        pieces = [bytes([i]) for i in range(256)] + [b"<bos>", b"<eos>"] + [w.encode() for w in self.WORDS]
        self._blob = memoryview(b"".join(pieces))
        ends = np.cumsum([0] + [len(piece) for piece in pieces]).astype(np.uint32)
        self._offsets = memoryview(ends.tobytes()).cast("I")

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The bytes of the text; `<bos>` and the like are read as control tokens if `parse_special`."""
        if not parse_special:
            return list(text.encode())
        before, found, after = text.partition("<turn>")
        return [*before.encode(), *([self.TURN, *self.encode(after, parse_special=True)] if found else [])]

    def byte_tables(self) -> tuple[memoryview, memoryview]:
        """As `Tokenizer.byte_tables`."""
        return self._offsets, self._blob

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids, broken characters as U+FFFD."""
        kept = [i for i in ids if not (skip_special and i in self.special_ids)]
        return b"".join(bytes(self._blob[self._offsets[i] : self._offsets[i + 1]]) for i in kept).decode(
            "utf-8", "replace"
        )


def encode_chat(chat: Chat) -> list[int]:
    """A chat for `ByteTokenizer`: a turn token before each message, and one more."""
    ids = []
    for message in chat.messages:
        ids += [ByteTokenizer.TURN, *f"{message.role}: {message.content}".encode()]
    return [*ids, ByteTokenizer.TURN]


def text_engine(
    interpreter: ScriptedInterpreter | RecitingInterpreter | None = None,
    *,
    context_tokens: int = 1000,
    **scheduler: int,
) -> TextEngine:
    """A whole engine around a fake model: byte tokenizer, numpy sampler, seeds 1000, 1001, ..."""
    model = interpreter or ScriptedInterpreter(vocabulary=ByteTokenizer.vocab_size)
    tokenizer = ByteTokenizer()
    options = EngineOptions(context_tokens, frozenset(tokenizer.stop_ids), SchedulerOptions(**scheduler))
    engine = Engine(model, ReferenceSampler(), options)
    return TextEngine(engine, tokenizer, seeds=CountingSeeds(), name="fake", encode_chat=encode_chat)  # type: ignore[arg-type]


class CountingSeeds:
    """Draws 1000, 1001, ...: seeds that a test can name."""

    def __init__(self) -> None:
        self._next = 1000

    def draw(self) -> int:
        """The next number."""
        self._next += 1
        return self._next - 1
