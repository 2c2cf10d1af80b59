"""What a model file says about its tokenizer, checked and given one form whatever the algorithm.

Two algorithms exist in GGUF files that Stoker reads: byte-level BPE (``gpt2``: merges are listed) and
SentencePiece BPE (``llama``: merges follow from the tokens' scores). Both are reduced to the same thing:
symbols, and ranked merges of two neighbouring symbols into one.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.api.errors import ModelFormatError
from stoker.tokenizer.pretokenizer import PRE_TOKENIZERS

# Token types of GGUF's tokenizer.ggml.token_type.
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(7)

SPACE = "\u2581"  # what SentencePiece writes for a space

# A vocabulary larger than this is a broken count, not a model: the largest in use has about 2**18 tokens.
MAX_TOKENS = 1 << 22

# A SentencePiece token is cut at every place to find its merges, so its length is bounded (in characters).
MAX_SPM_TOKEN_CHARS = 512

# Texts of tokens that end a turn or a text, whatever the file says of them. Files carry at most one
# "end of text" and one "end of turn" id, while chat models end with several.
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "_<EOT>", "[EOT]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_utterance>", "</s>", "<|eom_id|>",
    "<eos>", "<turn|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "[EOS]", "<|tool_response>",
    "[e~[",
)  # fmt: skip
# Code models end the present file with a padding, repository or file separator token.
END_OF_FILE_TEXTS = (
    ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ("<|file_sep|>",),
)
# The first twelve of END_TEXTS may stand for "end of turn" when the file names none.
END_OF_TURN_TEXTS = END_TEXTS[:11]
# In these vocabularies a channel is text that callers want to see.
CHANNEL_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass(frozen=True)
class Merges:
    """Ranked merges as parallel arrays: (left, right) -> merged, least rank first. Ids are symbols."""

    left: array[int]
    right: array[int]
    merged: array[int]
    rank: array[int]

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True)
class Vocabulary:
    """A checked tokenizer description. ``symbols`` are the ids below; all >= len(texts) are synthetic."""

    algorithm: str  # "bpe" (byte-level) or "spm" (SentencePiece)
    pre: str  # name in PRE_TOKENIZERS; "" for spm
    texts: tuple[str, ...]
    types: bytes  # one token type for each token
    merges: Merges
    symbols: dict[int, int]  # code point (spm) or byte (bpe) -> symbol id
    expansions: tuple[tuple[int, ...], ...]  # ids that the k-th synthetic symbol is written as
    ranks_are_unique: bool
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unk_id: int | None
    pad_id: int | None
    stop_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Check ``tokenizer.*`` of a GGUF file's metadata.

    Raises ModelFormatError naming the key for anything missing, of the wrong type or inconsistent.
    """
    model = _text(metadata, "tokenizer.ggml.model")
    readers = {"gpt2": "bpe", "llama": "spm"}
    if model not in readers:
        raise ModelFormatError(
            f"tokenizer.ggml.model is {model!r}; known: {', '.join(sorted(readers))}",
            hint="this kind of tokenizer is not supported",
        )
    algorithm = readers[model]
    texts = _tokens(metadata)
    ids = {text: index for index, text in enumerate(texts)}
    if len(ids) != len(texts):
        twice = next(text for index, text in enumerate(texts) if ids[text] != index)
        raise ModelFormatError(f"tokenizer.ggml.tokens has {twice!r} more than once; tokens must be distinct")
    types = _types(metadata, len(texts))
    named = _named_ids(metadata, algorithm, len(texts))
    eot_id, stop_ids = _stop_ids(ids, types, named)
    pre = _pre_tokenizer(metadata) if algorithm == "bpe" else ""
    if algorithm == "bpe":
        symbols, expansions = _byte_symbols(ids, types)
        merges = _listed_merges(metadata, ids, types)
    else:
        symbols, expansions = _char_symbols(ids, texts, types)
        merges = _score_merges(metadata, ids, texts, types, symbols)
    add_bos = algorithm == "spm" or (algorithm == "bpe" and PRE_TOKENIZERS[pre].add_bos)
    vocabulary = Vocabulary(
        algorithm=algorithm,
        pre=pre,
        texts=tuple(texts),
        types=bytes(types),
        merges=merges,
        symbols=symbols,
        expansions=tuple(expansions),
        ranks_are_unique=_ranks_are_unique(merges),
        bos_id=named["bos"],
        eos_id=named["eos"],
        eot_id=eot_id,
        unk_id=named["unknown"],
        pad_id=named["padding"],
        stop_ids=stop_ids,
        add_bos=_flag(metadata, "tokenizer.ggml.add_bos_token", add_bos),
        add_eos=_flag(metadata, "tokenizer.ggml.add_eos_token", False),
        add_space_prefix=_flag(metadata, "tokenizer.ggml.add_space_prefix", algorithm == "spm")
        and algorithm == "spm",
        chat_template=_text(metadata, "tokenizer.chat_template", optional=True) or None,
    )
    for wanted, found, key in (
        (vocabulary.add_bos, vocabulary.bos_id, "bos_token_id"),
        (vocabulary.add_eos, vocabulary.eos_id, "eos_token_id"),
    ):
        if wanted and found is None:
            raise ModelFormatError(f"the tokenizer adds this token to every text, but has no {key}")
    return vocabulary


# --- single values ---------------------------------------------------------------------------------


def _text(metadata: Mapping[str, Any], key: str, *, optional: bool = False) -> str:
    value = metadata.get(key)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise ModelFormatError(f"{key} is {_shown(value)}; a string is needed")
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(key)
    if value is None:
        return default
    if value not in (True, False):
        raise ModelFormatError(f"{key} is {_shown(value)}; a bool is needed")
    return bool(value)


def _shown(value: object) -> str:
    return "missing" if value is None else f"{type(value).__name__} {value!r:.60}"


def _named_ids(metadata: Mapping[str, Any], algorithm: str, num_tokens: int) -> dict[str, int | None]:
    # SentencePiece files of the first Llama carry no ids; these are its fixed ones.
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if algorithm == "spm" else {}
    found: dict[str, int | None] = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.get(key, defaults.get(name))
        if value is not None:
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise ModelFormatError(f"{key} is {_shown(value)}; a token id is needed")
            value = int(value)
            if key not in metadata and value >= num_tokens:
                value = None
            elif not 0 <= value < num_tokens:
                raise ModelFormatError(f"{key} is {value}; the vocabulary has {num_tokens} tokens")
        found[name] = value
    return found


def _pre_tokenizer(metadata: Mapping[str, Any]) -> str:
    name = _text(metadata, "tokenizer.ggml.pre", optional=True) or "default"
    if name not in PRE_TOKENIZERS:
        raise ModelFormatError(
            f"tokenizer.ggml.pre is {name!r}; known: {', '.join(sorted(PRE_TOKENIZERS))}",
            hint="splitting the text differently would give other token ids, so no default is used",
        )
    return name


# --- arrays ----------------------------------------------------------------------------------------


def _array(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = metadata.get(key)
    if value is None or isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__"):
        raise ModelFormatError(f"{key} is {_shown(value)}; an array is needed")
    if len(value) > 16 * MAX_TOKENS:
        raise ModelFormatError(f"{key} has {len(value)} entries; at most {16 * MAX_TOKENS} are allowed")
    tolist = getattr(value, "tolist", None)
    items: Sequence[Any] = tolist() if tolist is not None else value
    return items


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    key = "tokenizer.ggml.tokens"
    tokens = _array(metadata, key)
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise ModelFormatError(f"{key} has {len(tokens)} entries; 1 to {MAX_TOKENS} are allowed")
    for index, token in enumerate(tokens):
        if not isinstance(token, str):
            raise ModelFormatError(f"{key}[{index}] is {_shown(token)}; a string is needed")
    # An empty text cannot be matched or merged; it gets the name that other readers of GGUF give it.
    return [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]


def _types(metadata: Mapping[str, Any], num_tokens: int) -> bytearray:
    key = "tokenizer.ggml.token_type"
    if metadata.get(key) is None:
        return bytearray([NORMAL]) * num_tokens
    types = _array(metadata, key)
    if len(types) < num_tokens:
        raise ModelFormatError(f"{key} has {len(types)} entries for {num_tokens} tokens")
    known = range(BYTE + 1)
    return bytearray(kind if kind in known else UNDEFINED for kind in types[:num_tokens])


def _stop_ids(
    ids: dict[str, int], types: bytearray, named: dict[str, int | None]
) -> tuple[int | None, tuple[int, ...]]:
    """The end-of-turn id and all ids that end a generation; their types become CONTROL in ``types``."""
    eot_id = named["eot"]
    if eot_id is None:
        eot_id = next((ids[text] for text in END_OF_TURN_TEXTS if text in ids), None)
    stops = {ids[text] for text in END_TEXTS if text in ids}
    for group in END_OF_FILE_TEXTS:
        stops.update([ids[text] for text in group if text in ids][:1])
    for index in stops:
        types[index] = CONTROL
    for text in CHANNEL_TEXTS:
        if text in ids:
            types[ids[text]] = USER_DEFINED
    stops.update(index for index in (named["eos"], eot_id, named["eom"]) if index is not None)
    # With these pairs "<|end|>" closes a message and the answer goes on after it.
    calls = "<|call|>" in ids or "<|calls|>" in ids
    if "<|end|>" in ids and calls and ("<|return|>" in ids or "<|flush|>" in ids):
        stops.discard(ids["<|end|>"])
        types[ids["<|end|>"]] = USER_DEFINED
    # Vocabularies with this token use "</s>" as the HTML tag.
    if "</s>" in ids and "<|tool_response>" in ids:
        stops.discard(ids["</s>"])
        types[ids["</s>"]] = NORMAL
    return eot_id, tuple(sorted(stops))


# --- byte-level BPE --------------------------------------------------------------------------------


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each of the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    characters, others = [], 0
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(256 + others))
            others += 1
    return characters


def _byte_symbols(ids: dict[str, int], types: bytearray) -> tuple[dict[int, int], list[tuple[int, ...]]]:
    """Byte -> symbol. A byte without a token is dropped from the text, as llama.cpp does."""
    symbols: dict[int, int] = {}
    expansions: list[tuple[int, ...]] = []
    for byte, character in enumerate(byte_characters()):
        index = ids.get(character)
        if index is None or types[index] == CONTROL:
            index = len(ids) + len(expansions)
            expansions.append(())
        symbols[byte] = index
    return symbols, expansions


def _listed_merges(metadata: Mapping[str, Any], ids: dict[str, int], types: bytearray) -> Merges:
    key = "tokenizer.ggml.merges"
    merges = Merges(array("I"), array("I"), array("I"), array("I"))
    seen: set[tuple[int, int]] = set()
    for rank, line in enumerate(_array(metadata, key)):
        if not isinstance(line, str):
            raise ModelFormatError(f"{key}[{rank}] is {_shown(line)}; a string is needed")
        cut = line.find(" ", 1)
        left, right = ids.get(line[:cut]), ids.get(line[cut + 1 :])
        merged = ids.get(line[:cut] + line[cut + 1 :])
        if cut < 0 or left is None or right is None or merged is None:
            raise ModelFormatError(f"{key}[{rank}] is {line!r:.80}; two tokens that make a third are needed")
        if (left, right) in seen or not arises_from_text(types[merged]):
            continue
        seen.add((left, right))
        merges.left.append(left)
        merges.right.append(right)
        merges.merged.append(merged)
        merges.rank.append(rank)
    return merges


# --- SentencePiece BPE -----------------------------------------------------------------------------


def arises_from_text(kind: int) -> bool:
    """Whether tokens of this type come from merging. Control, unknown and byte tokens do not: what looks
    like one in a text is text."""
    return kind not in (CONTROL, UNKNOWN, BYTE)


def _char_symbols(
    ids: dict[str, int], texts: list[str], types: bytearray
) -> tuple[dict[int, int], list[tuple[int, ...]]]:
    """Code point -> symbol. Characters that only occur inside longer tokens get synthetic symbols."""
    byte_ids = [ids.get(f"<0x{byte:02X}>") for byte in range(256)]
    if None in byte_ids:
        raise ModelFormatError(
            f"tokenizer.ggml.tokens lacks the byte token '<0x{byte_ids.index(None):02X}>'; "
            "a SentencePiece vocabulary needs all 256"
        )
    symbols: dict[int, int] = {}
    inside: set[str] = set()
    for index, text in enumerate(texts):
        if arises_from_text(types[index]):
            if len(text) == 1:
                symbols[ord(text)] = index
            elif not _is_cut_out_first(text, types[index]):
                inside.update(text)
    expansions: list[tuple[int, ...]] = []
    for character in sorted(inside):
        if ord(character) not in symbols:
            symbols[ord(character)] = len(texts) + len(expansions)
            expansions.append(tuple(int(byte_ids[byte] or 0) for byte in character.encode()))
    return symbols, expansions


def _is_cut_out_first(text: str, kind: int) -> bool:
    # User-defined tokens are found before anything is merged, so merges never see their text; but one
    # written with U+2581 does arise from spaces.
    return kind == USER_DEFINED and SPACE not in text


def _score_merges(
    metadata: Mapping[str, Any],
    ids: dict[str, int],
    texts: list[str],
    types: bytearray,
    symbols: dict[int, int],
) -> Merges:
    """All ways to put a token together from two, ranked by the token's score (equal score, equal rank)."""
    key = "tokenizer.ggml.scores"
    scores = _array(metadata, key)
    if len(scores) < len(texts):
        raise ModelFormatError(f"{key} has {len(scores)} entries for {len(texts)} tokens")
    candidates: list[tuple[float, int]] = []
    for index, text in enumerate(texts):
        if len(text) < 2 or not arises_from_text(types[index]) or _is_cut_out_first(text, types[index]):
            continue
        if len(text) > MAX_SPM_TOKEN_CHARS:
            raise ModelFormatError(
                f"tokenizer.ggml.tokens[{index}] has {len(text)} characters; at most {MAX_SPM_TOKEN_CHARS}"
            )
        score = scores[index]
        if not isinstance(score, int | float) or math.isnan(score):
            raise ModelFormatError(f"{key}[{index}] is {_shown(score)}; a number is needed")
        candidates.append((-score, index))
    candidates.sort()
    pieces = {text: index for text, index in ids.items() if arises_from_text(types[index])}
    pieces.update((chr(point), index) for point, index in symbols.items())
    merges = Merges(array("I"), array("I"), array("I"), array("I"))
    rank, previous = -1, None
    for negated, index in candidates:
        if negated != previous:
            rank, previous = rank + 1, negated
        text = texts[index]
        for cut in range(1, len(text)):
            left = pieces.get(text[:cut])
            if left is not None:
                right = pieces.get(text[cut:])
                if right is not None:
                    merges.left.append(left)
                    merges.right.append(right)
                    merges.merged.append(index)
                    merges.rank.append(rank)
    return merges


def _ranks_are_unique(merges: Merges) -> bool:
    """Whether no two different tokens share a rank: then an order by rank alone decides everything.

    Different cuts of one token may share its rank: at most one of them ever happens. A token's text, when
    nothing merged across its ends, goes through the same states wherever it stands, so only one pair of
    pieces can be the last state before the token.
    """
    token_by_rank: dict[int, int] = {}
    return all(token_by_rank.setdefault(r, m) == m for r, m in zip(merges.rank, merges.merged, strict=True))
