"""Embeddings of real models: exact, near numpy's, sensible; and over HTTP with the OpenAI SDK."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.integration.test_server_command import _serving
from tests.numerics.reference_models import blocks_for, lazy_weights, make_batch

from stoker import LLM, SamplingParams
from stoker.api.request import Pooling
from stoker.kernels.reference import ReferenceInterpreter
from stoker.models.registry import program_from_gguf
from stoker.weights.gguf import GGUFFile

pytestmark = pytest.mark.model

POOLINGS: tuple[Pooling, ...] = ("mean", "last")
PAIRS = (  # each with its like
    ("A cat sleeps on the warm sofa.", "A kitten is napping on the couch."),
    ("The central bank raised interest rates.", "Interest rates went up after the bank's decision."),
    ("How do I bake sourdough bread?", "What is the recipe for a sourdough loaf?"),
    ("The train to Berlin leaves at noon.", "At twelve o'clock the Berlin train departs."),
)
TEXTS = [text for pair in PAIRS for text in pair]


@pytest.fixture(scope="module")
def llm_of(request: pytest.FixtureRequest) -> Callable[..., LLM]:
    @cache
    def make(name: str, **options: Any) -> LLM:
        path: Path = request.getfixturevalue(f"{name}_path")
        return LLM(path, **{"threads": 2, "kv_bytes": 1 << 30, **options})

    return make


each_model = pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3", marks=pytest.mark.slow)])


@each_model
@pytest.mark.parametrize("pooling", POOLINGS)
def test_like_sentences_are_nearest(name: str, pooling: Pooling, llm_of: Callable[..., LLM]) -> None:
    vectors = llm_of(name).embed(TEXTS, pooling=pooling)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    likeness = vectors @ vectors.T - 2 * np.eye(len(TEXTS))
    assert likeness.argmax(axis=1).tolist() == [i ^ 1 for i in range(len(TEXTS))]


@each_model
@pytest.mark.parametrize("pooling", POOLINGS)
def test_however_it_is_computed(name: str, pooling: Pooling, llm_of: Callable[..., LLM]) -> None:
    """Alone; beside others; in small steps on one thread beside answers, over what is left in the cache."""
    llm = llm_of(name)
    text = llm.tokenize(" ".join(TEXTS) * 8)[:600]
    alone = llm.embed([text], pooling=pooling).tobytes()
    draw = random.Random(1)
    vocabulary = llm.text_engine.engine.vocabulary
    crowd: list[Any] = [[draw.randrange(vocabulary) for _ in range(draw.randint(1, 90))] for _ in range(20)]
    crowd += [text[:500], text[:97]]  # prefixes of it
    crowd.insert(11, text)
    assert llm.embed(crowd, pooling=pooling)[11].tobytes() == alone
    small = llm_of(name, threads=1, batch_tokens=48, max_sequences=3)
    small.generate([text[:300], text[50:90]], SamplingParams(max_tokens=4))
    pieces = small.stream(text[:64], SamplingParams(max_tokens=40, ignore_eos=True))
    next(pieces)
    assert small.embed(crowd[9:13], pooling=pooling)[2].tobytes() == alone
    assert sum(len(piece.token_ids) for piece in pieces) == 39
    small.text_engine.engine.check()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_near_numpys(smollm2_path: Path, pooling: Pooling, llm_of: Callable[..., LLM]) -> None:
    """float32 weights and activations in numpy: what int8 activations, keys and values cost."""
    llm = llm_of("smollm2")
    ids = llm.tokenize(PAIRS[0][0])
    with GGUFFile.open(smollm2_path) as file:
        program = program_from_gguf(file.metadata, file.tensors)
        reference = ReferenceInterpreter(program, lazy_weights(file), num_blocks=blocks_for(len(ids)))
        reference.run(make_batch([(ids, 0, range(blocks_for(len(ids))))], [], range(len(ids))))
    states = reference.hidden_states.astype(np.float64)
    expected = states[-1] if pooling == "last" else states.mean(axis=0)
    expected /= np.linalg.norm(expected)
    found = llm.embed([ids], pooling=pooling)[0]
    assert float(found @ expected) > 0.998


def test_through_http(smollm2_path: Path, llm_of: Callable[..., LLM]) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    llm = llm_of("smollm2")
    expected = llm.embed(TEXTS)
    with (
        _serving(smollm2_path) as (url, _),
        openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client,
    ):
        name = smollm2_path.stem
        packed = client.embeddings.create(model=name, input=TEXTS)  # the SDK asks for base64, and unpacks it
        plain = client.embeddings.create(model=name, input=TEXTS, encoding_format="float")
        for answer in (packed, plain):
            assert [one.index for one in answer.data] == list(range(len(TEXTS)))
            assert (
                np.array([one.embedding for one in answer.data], np.float32).tobytes() == expected.tobytes()
            )
            assert answer.usage.prompt_tokens == sum(len(llm.tokenize(text)) for text in TEXTS)
            assert answer.model == name
        ids = client.embeddings.create(model=name, input=[llm.tokenize(text) for text in TEXTS])
        assert ids.data[3].embedding == packed.data[3].embedding
        chain = langchain_openai.OpenAIEmbeddings(
            model=name, base_url=url + "/v1", api_key="none", check_embedding_ctx_length=False
        )
        assert chain.embed_documents(TEXTS) == [one.embedding for one in packed.data]
        assert chain.embed_query(TEXTS[0]) == packed.data[0].embedding
        last = client.embeddings.create(model=name, input=TEXTS[0], extra_body={"pooling": "last"})
        assert np.float32(last.data[0].embedding).tobytes() == llm.embed(TEXTS[0], pooling="last").tobytes()
        with pytest.raises(openai.BadRequestError, match="dimensions is 256; allowed: 576"):
            client.embeddings.create(model=name, input="a", dimensions=256)
        with pytest.raises(openai.BadRequestError) as long:
            client.embeddings.create(model=name, input=["a", "a " * 20_000])
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "input[1]")
