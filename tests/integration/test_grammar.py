"""Grammars with real vocabularies, and with a real model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from stoker.api.constraint import Constraint, Thinking
from stoker.api.request import SamplingParams
from stoker.bench.grammar import measure_rows, read_rows
from stoker.grammar.compiler import GrammarCompiler
from stoker.llm import LLM
from stoker.tokenizer import Tokenizer, build_tokenizer
from stoker.weights.gguf import GGUFFile

GOLDEN = Path(__file__).parents[1] / "golden" / "jsonschema.jsonl"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "tags": {
            "type": "array",
            "items": {"enum": ["red", "blue", "b"]},
            "uniqueItems": True,
            "minItems": 2,
        },
        "age": {"type": "integer", "minimum": 0, "maximum": 150, "not": {"const": 42}},
    },
    "required": ["name", "tags", "age"],
    "additionalProperties": False,
}


@cache
def _tokenizer(path: Path) -> Tokenizer:
    with GGUFFile.open(path) as file:
        return build_tokenizer(file.metadata)


@pytest.fixture(params=["smollm2_path", "gemma3_path"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return _tokenizer(request.getfixturevalue(request.param))


@pytest.mark.model
def test_real_schemas_are_enforced_with_real_tokens(tokenizer: Tokenizer) -> None:
    result = measure_rows(list(read_rows(GOLDEN)), tokenizer, progress=lambda *_: None)
    assert result["compiled_share"] == 1
    assert result["wrong_accepts"] == []
    assert result["wrong_rejects"] == []


@pytest.mark.model
@pytest.mark.parametrize(
    "value",
    [{"name": "J\u00fcrgen \U0001f600", "a longer name": [1, None, "x\n"]}, "plain", [[], {}, [{}]], "'\"\\"],
)
def test_forced_text_is_tokenized_as_the_model_would(tokenizer: Tokenizer, value: object) -> None:
    compiler = GrammarCompiler(tokenizer, vocabulary=tokenizer.vocab_size)
    constraint = Constraint("json_schema", json.dumps({"const": value}))
    guides = compiler.guides(SamplingParams(constraint=constraint))
    assert guides is not None
    guide, ids = guides.new(), list[int]()
    while not guide.finished:
        assert guide.forced
        ids.append(guide.forced[0])
        guide.push(ids[-1])
    text = json.dumps(value, ensure_ascii=False)
    assert tokenizer.join_bytes(ids).decode() == text
    if not tokenizer.add_space_prefix:
        assert ids == tokenizer.encode(text, add_special=False)


@pytest.mark.model
def test_a_real_model_writes_valid_json_and_writes_it_again(smollm2_path: Path) -> None:
    with LLM(str(smollm2_path), context_tokens=1024) as llm:
        for seed in range(6):
            constraint = Constraint("json_schema", json.dumps(PERSON))
            params = SamplingParams(temperature=1.0, seed=seed, max_tokens=160, constraint=constraint)
            first, again = (llm.generate("A person as JSON:\n", params)[0] for _ in range(2))
            assert again.text == first.text
            if first.finish_reason != "stop":
                continue
            person = json.loads(first.text)
            assert list(person) == ["name", "tags", "age"]
            assert len(set(person["tags"])) == len(person["tags"]) >= 2
            assert 0 <= person["age"] <= 150
            assert person["age"] != 42


@pytest.mark.model
def test_a_real_model_thinks_no_longer_than_its_budget(smollm2_path: Path) -> None:
    thinking = Thinking("<think>", "</think>", begun=True, budget_tokens=12, closing="\nSo:\n")
    constraint = Constraint("choice", choices=("yes", "no"))
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=80, thinking=thinking, constraint=constraint)
    with LLM(str(smollm2_path), context_tokens=1024) as llm:
        text = llm.generate("Is water wet? <think>", params)[0].text
    thoughts, _, answer = text.partition("</think>")
    assert answer.strip() in ("yes", "no")
    assert len(llm_tokens(thoughts.removesuffix("\nSo:\n"), smollm2_path)) <= 13


def llm_tokens(text: str, path: Path) -> list[int]:
    """Its tokens, which may be one more or less than were generated."""
    return _tokenizer(path).encode(text, add_special=False)
