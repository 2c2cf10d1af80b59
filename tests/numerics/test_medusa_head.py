"""Medusa heads: their numbers against numpy, answers of plain decoding, bad files, how they are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.drafts import FreeCost
from tests.numerics.draft_heads import (
    DIGEST,
    medusa_shape_for,
    open_head,
    random_tensors,
    shape_for,
    write_random_head,
)
from tests.numerics.native_models import TinyModel, assert_same_bits, open_native, tiny_config

from stoker.api.errors import ModelFormatError
from stoker.api.request import SamplingParams
from stoker.engine import Engine
from stoker.engine.engine import EngineOptions
from stoker.engine.heads import choose_heads, find_heads, head_name, load_heads
from stoker.sampling.native import native_sampler
from stoker.speculation import Draft, Features, Opening, Speculator
from stoker.speculation.head_file import find_head, load_head
from stoker.speculation.medusa import MedusaDrafters
from stoker.speculation.medusa_head import MedusaHead
from stoker.weights.digest import weights_digest
from stoker.weights.gguf import GGUFFile
from stoker.weights.packing import dequantize_reference

CONFIG = tiny_config("llama")
SHAPE = medusa_shape_for(CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("heads")
    TinyModel("target", CONFIG).write(made)
    write_random_head(made / "head.gguf", CONFIG, kind="medusa")
    return made


@pytest.fixture
def head(folder: Path) -> MedusaHead:
    found = open_head(folder / "head.gguf", folder / "target.gguf")
    assert isinstance(found, MedusaHead)
    return found


def states(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, CONFIG.width)).astype(np.float32)


def weights_of(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with GGUFFile.open(path) as file:
        for name, tensor in file.tensors.items():
            if len(tensor.shape) == 2:
                values = dequantize_reference(
                    tensor.type.type_id, np.asarray(file.data(tensor)), *tensor.shape
                )
                found[name] = values.astype(np.float64)
    return found


def test_numbers_are_those_of_the_formula(folder: Path, head: MedusaHead) -> None:
    own, target = weights_of(folder / "head.gguf"), weights_of(folder / "target.gguf")
    rows = target.get("output.weight", target["token_embd.weight"])[head.token_ids]
    for state in states(4):
        logits = head.guess(state[None], SHAPE.heads)
        for number in range(SHAPE.heads):
            gate, up, down = (own[f"medusa.{number}.{part}.weight"] for part in ("gate", "up", "down"))
            gated = gate @ state
            changed = state + down @ (gated / (1 + np.exp(-gated)) * (up @ state))
            expected = rows @ changed
            # int8 activations, twice: a percent or two of the logits' spread.
            assert np.abs(logits[number] - expected).max() < 0.1 * expected.std()


@pytest.mark.parametrize("threads", [1, 2])
def test_fewer_guesses_and_threads_change_no_bit(folder: Path, head: MedusaHead, threads: int) -> None:
    other = open_head(folder / "head.gguf", folder / "target.gguf", threads=threads)
    assert isinstance(other, MedusaHead)
    for state in states(3):
        whole = head.guess(state[None], SHAPE.heads).copy()
        for count in range(1, SHAPE.heads + 1):
            assert_same_bits(other.guess(state[None], count), whole[:count])


@pytest.mark.parametrize(
    ("sampling", "concurrency"),
    [
        ({"temperature": 0.0}, 1),
        ({"temperature": 0.9, "top_p": 0.9}, 3),
        ({"temperature": 0.7, "presence_penalty": 0.5, "logit_bias": {4: 2.0}, "min_tokens": 8}, 2),
    ],
)
def test_answers_are_those_of_plain_decoding(
    folder: Path, sampling: dict[str, Any], concurrency: int
) -> None:
    # What an EAGLE head beside it would read of the layers is not Medusa's.
    interpreter = open_native(folder / "target.gguf", batch_tokens=512, draft_layers=(0, 1))
    sampler = native_sampler(interpreter.pool)
    assert interpreter.embedding is not None
    with GGUFFile.open(folder / "target.gguf") as file:
        head = load_head(
            folder / "head.gguf", file, interpreter.embedding, interpreter.pool,
            target_digest=DIGEST, context_tokens=interpreter.context_tokens,
        )  # fmt: skip
    assert isinstance(head, MedusaHead)
    answers = []
    for drafters in ((), (MedusaDrafters(head, sampler),)):
        engine = Engine(interpreter, sampler, EngineOptions(2048), drafters=drafters)
        if drafters:
            engine._speculator = Speculator(drafters, FreeCost())
        found: dict[str, list[int]] = {}
        for number in range(concurrency):
            prompt = np.random.default_rng(number).integers(0, CONFIG.vocabulary, 30 + 20 * number)
            engine.add(str(number), prompt.tolist(), SamplingParams(max_tokens=50, **sampling), seed=number)
        while engine.busy:
            for output in engine.step():
                assert output.token_id is not None
                found.setdefault(output.sequence.request_id, []).extend((output.token_id, *output.written))
        engine.check()
        answers.append(found)
        if drafters:
            assert engine.stats().drafted_tokens > 0
    assert answers[0] == answers[1]


def test_it_drafts_from_the_state_before_the_last_known_token(folder: Path, head: MedusaHead) -> None:
    pool = open_native(folder / "target.gguf").pool
    drafters = MedusaDrafters(head, native_sampler(pool))
    features = Features(drafters.feature_tokens)
    packed = packed_greedy()
    drafter = drafters.open(Opening(packed=packed, features=features))
    drafter.extend([5, 6, 7, 8])
    assert drafter.propose(3) is None  # no state yet
    rows = states(20)
    features.put(0, rows[:2])
    assert drafter.propose(3) is None  # not the latest
    features.put(2, rows[2:18])  # 15 wrong guesses stand behind the state that counts
    proposal = drafter.propose(8)
    assert proposal is not None
    likeliest = head.token_ids[head.guess(rows[2:3], SHAPE.heads).argmax(axis=1)]
    parents = None if proposal.parents is None else tuple(proposal.parents)
    stem = Draft(tuple(proposal.tokens), parents).stem
    assert list(stem) == likeliest[: len(stem)].tolist()
    assert all(0 <= kind < len(drafters.chances) for kind in proposal.kinds)
    one = drafter.propose(1)
    assert one is not None
    assert list(one.tokens) == list(proposal.tokens[:1])


def packed_greedy() -> Any:
    from stoker.sampling.rows import pack_params

    return pack_params(SamplingParams(temperature=0.0, logprobs=0), 0, CONFIG.vocabulary)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_digest": "f" * 64}, "model with digest ffffffffffffffff"),
        ({"vocabulary": 99}, "vocabulary of 99"),
        ({"passes": 2}, "stoker.draft.passes"),
        ({"draft_vocabulary": np.zeros(16, np.int32)}, "token_ids"),
        ({"tensors": {}}, "is missing"),
    ],
)
def test_heads_of_others_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_random_head(tmp_path / "bad.gguf", CONFIG, kind="medusa", **changes)
    with pytest.raises(ModelFormatError, match=message):
        open_head(path, folder / "target.gguf")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", CONFIG.width * 2, "takes states of"),
        ("inner", 33, "multiples of 32"),
        ("inner", 64, "medusa.0.gate.weight"),
        ("heads", 4, "medusa.3.gate.weight"),
        ("heads", 17, "stoker.draft.medusa.heads"),
        ("heads", 0, "stoker.draft.medusa.heads"),
    ],
)
def test_shapes_that_are_not_so_are_refused(
    folder: Path, tmp_path: Path, field: str, value: int, message: str
) -> None:
    shape = type(SHAPE)(**{"width": SHAPE.width, "inner": SHAPE.inner, "heads": SHAPE.heads, field: value})
    path = write_random_head(
        tmp_path / "bad.gguf", CONFIG, kind="medusa", shape=shape, tensors=random_tensors(SHAPE)
    )
    with pytest.raises(ModelFormatError, match=message):
        open_head(path, folder / "target.gguf")


def test_files_that_are_cut_or_have_no_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "head.gguf").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "short.gguf").write_bytes(whole[:size])
        with pytest.raises(ModelFormatError):
            open_head(tmp_path / "short.gguf", folder / "target.gguf")
    tensors = random_tensors(SHAPE)
    tensors["medusa.1.up.weight"][3, 3] = np.nan
    path = write_random_head(tmp_path / "nan.gguf", CONFIG, kind="medusa", tensors=tensors)
    with pytest.raises(ModelFormatError, match=r"medusa\.1\.up"):
        open_head(path, folder / "target.gguf")


def test_what_training_makes_is_what_is_run(folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'stoker[train]'")
    from stoker.training.train import DraftOptions, _begin

    eagle, _, _ = _begin(folder / "target.gguf", tmp_path, DraftOptions(unroll=2))
    assert eagle.shape.metadata()["stoker.draft.width"] == CONFIG.width
    assert set(eagle.tensors.values()) == set(random_tensors(shape_for(CONFIG, (0, 1))))
    lesson, embeddings, _ = _begin(folder / "target.gguf", tmp_path, DraftOptions(kind="medusa", unroll=2))
    assert embeddings.shape == (CONFIG.vocabulary, CONFIG.width)
    assert eagle.checkpoint != lesson.checkpoint
    with torch.no_grad():
        for parameter in lesson.module.parameters():
            parameter.normal_(std=0.2)
    tensors = {
        name: lesson.module.get_parameter(one).detach().numpy() for one, name in lesson.tensors.items()
    }
    path = write_random_head(
        tmp_path / "trained.gguf", CONFIG, kind="medusa", shape=lesson.shape, tensors=tensors
    )
    head = open_head(path, folder / "target.gguf")
    assert isinstance(head, MedusaHead)
    target = weights_of(folder / "target.gguf")
    rows = target.get("output.weight", target["token_embd.weight"])[head.token_ids]
    state = states(1)
    # At position 1 block 0 reads the state there, block 1 the one before it.
    both = torch.from_numpy(np.stack([state[0], state[0]]))[None]
    unrolled = [hidden[0, 1].detach().numpy() for hidden in lesson.unrolled(both, both, 9)]
    found = head.guess(state, 2)
    for logits, hidden in zip(found, unrolled, strict=True):
        expected = rows @ hidden
        assert np.abs(logits - expected).max() < 0.1 * expected.std()


def test_every_kind_is_found_by_the_digest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_HOME", str(tmp_path))
    interpreter = open_native(folder / "target.gguf")
    sampler = native_sampler(interpreter.pool)

    def found(speculation: str, named: Path | None = None) -> tuple[set[str], str]:
        with GGUFFile.open(folder / "target.gguf") as file:
            chosen = choose_heads(file, speculation, None if named is None else str(named))
            heads = load_heads(chosen, file, interpreter, sampler)
        return set(heads.drafters), "; ".join(heads.notes)

    assert found("auto") == (set(), "")
    names, note = found("medusa")
    assert not names
    assert "no medusa head" in note
    assert "--kind medusa" in note
    digest = weights_digest([folder / "target.gguf"])
    own = tmp_path / "heads"
    own.mkdir(exist_ok=True)
    for kind in ("eagle", "medusa"):
        path = own / head_name("target", digest, kind)
        write_random_head(path, CONFIG, kind=kind, target_digest=digest)
        with GGUFFile.open(folder / "target.gguf") as file:
            one = find_head(path, file, digest)
        assert one is not None
        assert one.kind == kind
    assert len(find_heads(own, digest)) == 2
    assert found("auto") == ({"eagle", "medusa"}, "")
    assert found("medusa") == ({"medusa"}, "")
    assert found("ngram") == (set(), "")
    medusa = own / head_name("target", digest, "medusa")
    assert found("auto", medusa) == ({"medusa"}, "")
    assert "no eagle head" in found("eagle", medusa)[1]
    medusa.write_bytes(b"GGUF")
    names, note = found("auto")
    assert names == {"eagle"}
    assert medusa.name in note
