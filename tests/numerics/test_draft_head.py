"""Draft heads: their numbers against the reference, the same bits however they are asked, and bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

import gguf
from tests.drafts import FreeCost
from tests.numerics.draft_heads import (
    DIGEST,
    WINDOW,
    open_head,
    random_tensors,
    shape_for,
    write_random_head,
)
from tests.numerics.native_models import TinyModel, assert_same_bits, open_native, tiny_config
from tests.numerics.reference_models import blocks_for, int32

from stoker.api.errors import EngineError, ModelFormatError, ModelNotFoundError
from stoker.api.request import SamplingParams
from stoker.engine import Engine
from stoker.engine.engine import EngineOptions
from stoker.kernels.program import Batch
from stoker.kernels.reference import ReferenceInterpreter
from stoker.sampling.native import native_sampler
from stoker.sampling.rows import pack_params
from stoker.speculation import Speculator
from stoker.speculation.drafter import Opening
from stoker.speculation.eagle import EagleDrafters
from stoker.speculation.features import Features
from stoker.speculation.head import MOST_STREAMS, DraftHead, eagle_program
from stoker.speculation.head_file import FoundHead, find_head, load_head
from stoker.weights.gguf import GGUFFile
from stoker.weights.packing import dequantize_reference

CONFIG = tiny_config("llama")
COUNT = 3 * WINDOW + 5


@pytest.fixture(scope="module", params=[(), (0, 1)], ids=["last-state", "layers"])
def layers(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Of the target, that the head reads."""
    found: tuple[int, ...] = request.param
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, layers: tuple[int, ...]) -> Path:
    made = tmp_path_factory.mktemp("heads")
    TinyModel("target", CONFIG).write(made)
    write_random_head(made / "head.gguf", CONFIG, layers=layers)
    return made


@pytest.fixture
def head(folder: Path) -> DraftHead:
    found = open_head(folder / "head.gguf", folder / "target.gguf")
    assert isinstance(found, DraftHead)
    return found


def story(width: int = CONFIG.width) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and states of a stream."""
    generator = np.random.default_rng(1)
    states = generator.standard_normal((COUNT, width)).astype(np.float32)
    return int32(generator.integers(0, CONFIG.vocabulary, COUNT)), states


def told(head: DraftHead, owner: object, pieces: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and states after each piece."""
    ids, states = story(head.target_width)
    logits, hidden, start = [], [], 0
    for count in pieces:
        guess = head.guess(owner, start, ids[start : start + count], states[start : start + count])
        logits.append(guess.logits.copy())
        hidden.append(guess.state[0])
        start += count
    return np.array(logits), np.array(hidden)


def test_numbers_are_the_references(folder: Path, head: DraftHead, layers: tuple[int, ...]) -> None:
    """Of the target's states, and of a state of the head's own after them."""
    ids, states = story(head.target_width)
    shape = shape_for(CONFIG, layers)
    weights: dict[str, Any] = {}
    for path in (folder / "target.gguf", folder / "head.gguf"):
        with GGUFFile.open(path) as file:
            for name, tensor in file.tensors.items():
                rows, columns = (1, tensor.shape[0]) if len(tensor.shape) == 1 else tensor.shape
                values = dequantize_reference(
                    tensor.type.type_id, np.asarray(file.data(tensor)), rows, columns
                )
                weights[name] = values.reshape(tensor.shape).astype(np.float32)
    rows = weights["output.weight"] if "output.weight" in weights else weights["token_embd.weight"]
    weights["draft_output.weight"] = rows[head.token_ids]
    program = eagle_program(shape, CONFIG.vocabulary, CONFIG.context_tokens)
    blocks = blocks_for(COUNT + 1)
    reference = ReferenceInterpreter(program, weights, num_blocks=blocks, kv_type="float32")
    last = int32([COUNT - 1])
    expected = reference.run(
        Batch(
            ids,
            int32(range(COUNT)),
            int32([0, COUNT]),
            int32([COUNT]),
            int32([range(blocks)]),
            last,
            last,
            states,
        )
    )[0]
    logits, hidden = told(head, "stream", [WINDOW, WINDOW, WINDOW, 5])
    # Q8_0 weights and int8 activations round to about 1 part in 200 of the largest number of 32, and
    # attention's int8 keys likewise: some percent of the logits' spread after a layer.
    assert np.abs(logits[-1] - expected).max() < 0.15 * expected.std()
    assert np.corrcoef(logits[-1], expected)[0, 1] > 0.999
    program = eagle_program(shape, CONFIG.vocabulary, CONFIG.context_tokens, of_target=False)
    own = ReferenceInterpreter(program, weights, num_blocks=blocks, kv_type="float32")
    own._k_caches, own._v_caches = reference._k_caches, reference._v_caches
    one, at = int32([0]), int32([COUNT])
    following = own.run(
        Batch(int32([7]), at, int32([0, 1]), at + 1, int32([range(blocks)]), one, one, hidden[-1:])
    )[0]
    actual = head.guess("stream", COUNT, int32([7]), hidden[-1:], own=True).logits
    assert np.abs(actual - following).max() < 0.15 * following.std()
    assert np.corrcoef(actual, following)[0, 1] > 0.999


@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_and_threads_change_no_bit(folder: Path, threads: int) -> None:
    head = open_head(folder / "head.gguf", folder / "target.gguf", threads=threads)
    assert isinstance(head, DraftHead)
    whole = told(head, "a", [WINDOW, WINDOW, WINDOW, 5])
    pieces_of = {"b": [1] * COUNT, "c": [3] * 49 + [2], "d": [WINDOW - 1, WINDOW, 40, 14]}
    for owner, pieces in pieces_of.items():
        parts = told(head, owner, pieces)
        assert_same_bits(parts[0][-1:], whole[0][-1:])
        assert_same_bits(parts[1][-1:], whole[1][-1:])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("least_reached", [0.0, 0.02, 1.0])
def test_a_chain_is_its_passes(folder: Path, threads: int, least_reached: float) -> None:
    """In one call the same tokens, and shares to within what two ways of adding 64 floats differ by."""
    head = open_head(folder / "head.gguf", folder / "target.gguf", threads=threads)
    assert isinstance(head, DraftHead)
    ids, states = story(head.target_width)
    for count in (1, 2, WINDOW):
        found = head.chain(
            ("a", count), 0, ids[:count], states[:count], passes=4, least_reached=least_reached
        )
        guess = head.guess(("b", count), 0, ids[:count], states[:count])
        reached = 1.0
        for number, sure in enumerate(found):
            assert reached >= least_reached
            order = np.argsort(-guess.logits, kind="stable")[:2]
            assert (sure.first, sure.second) == tuple(head.token_ids[order].tolist())
            shares = np.exp(guess.logits[order] - guess.logits.max()) / np.exp(
                guess.logits - guess.logits.max()
            ).sum(dtype=np.float64)
            np.testing.assert_allclose([sure.share, sure.second_share], shares, rtol=64 * 2.0**-23)
            reached *= sure.share
            guess = head.guess(("b", count), count + number, int32([sure.first]), guess.state, own=True)
        assert len(found) == 4 or reached < least_reached
        assert len(found) == {0.0: 4, 1.0: 1}.get(least_reached, len(found))
        # The keys and values are those of the passes: what is said after them is the same.
        after, again = (
            head.guess((owner, count), count, ids[count : count + 1], states[count : count + 1]).logits.copy()
            for owner in "ab"
        )
        assert_same_bits(after[None], again[None])


def test_a_chain_past_what_there_is_is_refused(head: DraftHead) -> None:
    ids, states = story(head.target_width)
    for start, count, passes in (
        (0, 0, 1),
        (0, 2, 0),
        (CONFIG.context_tokens + 16, 1, 1),
        (0, WINDOW + 1, 1),
    ):
        with pytest.raises(EngineError, match="allowed"):
            head.chain("a", start, ids[:count], states[:count], passes=passes, least_reached=0.0)
    with pytest.raises(EngineError, match="the input has 1 rows"):
        head.chain("a", 0, ids[:2], states[:1], passes=1, least_reached=0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_chain_ends_where_states_are_no_numbers(head: DraftHead, value: float) -> None:
    ids, states = story(head.target_width)
    broken = states[:3].copy()
    broken[2] = value
    found = head.chain("a", 0, ids[:3], broken, passes=4, least_reached=0.0)
    assert all(-1 <= sure.first < CONFIG.vocabulary for sure in found)
    assert all(0 <= sure.share <= 1 for sure in found)
    guess = head.guess("b", 0, ids[:3], broken)
    assert (found[0].first < 0) == bool(np.isnan(guess.logits).all())


def test_drafts_of_a_chain_are_those_of_its_passes(
    folder: Path, head: DraftHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the head is asked in one call or pass by pass."""
    ids, states = story(head.target_width)
    features = Features(WINDOW)
    features.put(0, states[:20])
    params = pack_params(SamplingParams(temperature=0.0), 0, CONFIG.vocabulary)
    sampler = native_sampler(open_native(folder / "target.gguf").pool)
    found = []
    for likeliest in (True, False):
        monkeypatch.setattr(
            "stoker.speculation.eagle.wants_likeliest", lambda packed, answer=likeliest: answer
        )
        drafters = EagleDrafters(head, sampler)
        drafters.sampler.least_reached = 0.01
        for most in (1, 3, 15):
            drafter = drafters.open(Opening(prompt_tokens=5, packed=params, features=features))
            drafter.extend(ids[:21].tolist())
            found.append(drafter.propose(most))
    assert found[:3] == found[3:]
    assert [len(proposal.tokens) for proposal in found[:2] if proposal is not None] == [1, 3]


def test_of_many_streams_the_oldest_loses_its_keys_and_nothing_else(head: DraftHead) -> None:
    first = told(head, 0, [WINDOW])
    for owner in range(1, MOST_STREAMS + 1):
        assert_same_bits(told(head, owner, [WINDOW])[0], first[0])
    assert not head.holds(0)
    assert head.holds(1)
    head.forget(1)
    assert_same_bits(told(head, 0, [WINDOW])[0], first[0])
    assert head.holds(2)


@pytest.mark.parametrize(
    ("sampling", "concurrency"),
    [
        ({"temperature": 0.0}, 1),
        ({"temperature": 0.0}, 5),
        ({"temperature": 0.9, "top_p": 0.9}, 3),
        ({"temperature": 0.7, "presence_penalty": 0.5, "logit_bias": {4: 2.0}, "min_tokens": 8}, 2),
    ],
)
def test_answers_are_those_of_plain_decoding(
    folder: Path, layers: tuple[int, ...], sampling: dict[str, Any], concurrency: int
) -> None:
    interpreter = open_native(folder / "target.gguf", batch_tokens=512, draft_layers=layers)
    sampler = native_sampler(interpreter.pool)
    assert interpreter.embedding is not None
    with GGUFFile.open(folder / "target.gguf") as file:
        head = load_head(
            folder / "head.gguf", file, interpreter.embedding, interpreter.pool,
            target_digest=DIGEST, context_tokens=interpreter.context_tokens,
        )  # fmt: skip
    answers = []
    for drafters in ((), (EagleDrafters(head, sampler),)):
        engine = Engine(interpreter, sampler, EngineOptions(2048), drafters=drafters)
        if drafters:
            engine._speculator = Speculator(drafters, FreeCost())
        found: dict[str, list[int]] = {}
        for number in range(concurrency):
            prompt = np.random.default_rng(number).integers(0, CONFIG.vocabulary, 70 + 20 * number)
            engine.add(str(number), prompt.tolist(), SamplingParams(max_tokens=90, **sampling), seed=number)
        while engine.busy:
            for output in engine.step():
                assert output.token_id is not None
                found.setdefault(output.sequence.request_id, []).extend((output.token_id, *output.written))
        engine.check()
        answers.append(found)
        if drafters:
            assert engine.stats().drafted_tokens > 0
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_digest": "f" * 64}, "model with digest ffffffffffffffff"),
        ({"vocabulary": 99}, "vocabulary of 99"),
        ({"kind": "oracle"}, "stoker.draft.kind"),
        ({"passes": 0}, "stoker.draft.passes"),
        ({"draft_vocabulary": np.arange(15, dtype=np.int32)}, "token_ids"),
        ({"draft_vocabulary": np.arange(100, 164, dtype=np.int32)}, "token_ids"),
        ({"draft_vocabulary": np.zeros(16, np.int32)}, "token_ids"),
        ({"tensors": {"fc_feature.weight": np.zeros((64, 64), np.float32)}}, "is missing"),
        ({"layers": (1, 0)}, "stoker.draft.layers is .* ascending"),
        ({"layers": (1, 1)}, "stoker.draft.layers is .* ascending"),
        ({"layers": tuple(range(9))}, "stoker.draft.layers is .* up to 8"),
        ({"layers": (-1, 1)}, "stoker.draft.layers is"),
        ({"layers": ("one",)}, "stoker.draft.layers is"),
        ({"layers": (1, 2)}, "reads layer 2 of its model; allowed: 0 to 1"),
    ],
)
def test_heads_of_others_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_random_head(tmp_path / "bad.gguf", CONFIG, **changes)
    with pytest.raises(ModelFormatError, match=message):
        found(path, folder / "target.gguf")
    if "layers" not in changes:
        with pytest.raises(ModelFormatError, match=message):
            open_head(path, folder / "target.gguf")


def found(path: Path, target: Path) -> FoundHead | None:
    with GGUFFile.open(target) as file:
        return find_head(path, file, DIGEST)


def test_what_a_head_reads_is_known_before_its_target_is_loaded(
    folder: Path, layers: tuple[int, ...]
) -> None:
    path = folder / "head.gguf"
    assert found(path, folder / "target.gguf") == FoundHead(path, "eagle", layers)


def test_files_that_are_no_head_are_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "head.gguf").read_bytes()
    for ask in (open_head, found):
        for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
            (tmp_path / "short.gguf").write_bytes(whole[:size])
            with pytest.raises(ModelFormatError):
                ask(tmp_path / "short.gguf", folder / "target.gguf")
        with pytest.raises(ModelFormatError, match="a draft head"):
            ask(folder / "target.gguf", folder / "target.gguf")
        with pytest.raises(ModelNotFoundError):
            ask(tmp_path / "none.gguf", folder / "target.gguf")


def test_numbers_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors = random_tensors(shape_for(CONFIG))
    tensors["output_norm.weight"][3] = np.nan
    path = write_random_head(tmp_path / "nan.gguf", CONFIG, tensors=tensors)
    with pytest.raises(ModelFormatError, match="output_norm"):
        open_head(path, folder / "target.gguf")


def test_what_is_written_is_readable_by_others(folder: Path, layers: tuple[int, ...]) -> None:
    reader = gguf.GGUFReader(folder / "head.gguf")
    assert {tensor.name for tensor in reader.tensors} == set(random_tensors(shape_for(CONFIG, layers)))


def test_what_training_makes_is_what_is_run(folder: Path, tmp_path: Path, layers: tuple[int, ...]) -> None:
    """The module's guess after the target's states, and after its own of the token before."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'stoker[train]'")
    from stoker.training.export import file_names
    from stoker.training.head import EagleHead
    from stoker.training.kinds import read_tensor

    shape = shape_for(CONFIG, layers)
    module = EagleHead(shape)
    names = file_names(dict(module.named_parameters()))
    tensors = random_tensors(shape)
    with torch.no_grad():
        for parameter, name in names.items():
            module.get_parameter(parameter).copy_(torch.from_numpy(tensors[name]))
    path = write_random_head(tmp_path / "trained.gguf", CONFIG, layers=layers, tensors=tensors)
    head = open_head(path, folder / "target.gguf")
    assert isinstance(head, DraftHead)
    with GGUFFile.open(folder / "target.gguf") as file:
        embeddings, output = (
            read_tensor(file, name if name in file.tensors else "token_embd.weight")
            for name in ("token_embd.weight", "output.weight")
        )
    count = 20
    ids, states = (whole[:count] for whole in story(head.target_width))
    first, second = (
        hidden[0].detach().numpy()
        for hidden in module.unrolled(
            torch.from_numpy(states)[None], torch.from_numpy(embeddings[ids])[None], 2
        )
    )
    before = head.guess("stream", 0, ids[:-1], states[:-1])
    logits = [before.logits.copy(), head.guess("stream", count - 1, ids[-1:], before.state, own=True).logits]
    for found, hidden in zip(logits, (first[-2], second[-1]), strict=True):
        expected = output[head.token_ids] @ hidden
        assert np.abs(found - expected).max() < 0.15 * expected.std()
        assert np.corrcoef(found, expected)[0, 1] > 0.999
