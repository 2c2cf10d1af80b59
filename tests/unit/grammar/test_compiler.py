"""Compiling once for the same constraint, and keeping no more than a bound."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.unit.grammar.driving import PADDING, bpe_tokenizer, can_write

from stoker.api.constraint import Constraint
from stoker.api.errors import RequestError
from stoker.api.request import SamplingParams
from stoker.grammar import compiler as compiler_module
from stoker.grammar.compiler import GrammarCompiler


@pytest.fixture
def compiler() -> GrammarCompiler:
    return GrammarCompiler(bpe_tokenizer(), vocabulary=bpe_tokenizer().vocab_size + PADDING)


def _regex(text: str) -> SamplingParams:
    return SamplingParams(constraint=Constraint("regex", text))


def test_the_same_constraint_is_compiled_once(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Constraint] = []
    source_of = compiler_module.source_of

    def counted(constraint: Constraint, vocabulary: object) -> object:
        compiled.append(constraint)
        return source_of(constraint, vocabulary)  # type: ignore[arg-type]

    monkeypatch.setattr(compiler_module, "source_of", counted)
    for text in ("a", "b", "a", "a", "b"):
        assert compiler.guides(_regex(text)) is not None
    assert [constraint.text for constraint in compiled] == ["a", "b"]


def test_what_was_used_longest_ago_is_forgotten(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_module, "CACHED_GRAMMARS", 2)
    for text in ("a", "b", "a", "c"):
        compiler.guides(_regex(text))
    assert compiler.cached == 2
    monkeypatch.setattr(compiler_module, "CACHED_CHARS", 10)
    compiler.guides(_regex("x" * 11))
    assert compiler.cached == 0
    compiler.guides(_regex("y" * 9))
    assert compiler.cached == 1


def test_what_fails_is_not_kept_and_fails_again(compiler: GrammarCompiler) -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match="regex"):
            compiler.guides(_regex("("))
    assert compiler.cached == 0


def test_threads_get_guides_of_their_own(compiler: GrammarCompiler) -> None:
    def write(number: int) -> bool:
        source = compiler.guides(_regex(f"[ab]{{{number % 3 + 1}}}"))
        assert source is not None
        return can_write(source.new(), "a" * (number % 3 + 1)) and not can_write(source.new(), "a" * 4)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write, range(24)))


def test_guides_of_one_source_do_not_disturb_each_other(compiler: GrammarCompiler) -> None:
    source = compiler.guides(_regex("[ab]+c"))
    assert source is not None
    first, second = source.new(), source.new()
    for token_id in bpe_tokenizer().encode("aaa", add_special=False):
        first.push(token_id)
    assert can_write(second, "bc")
    assert can_write(first, "bc")


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "strin"}',
        '{"$ref": "#"}',
        '{"pattern": "("}',
        '{"pattern": "a(?=b)"}',
        '{"minLength": -1}',
        '{"required": 3}',
    ],
)
def test_a_refusal_says_that_it_is_about_the_schema(compiler: GrammarCompiler, schema: str) -> None:
    """Dialects tell by that which field to name."""
    with pytest.raises(RequestError, match="schema"):
        compiler.guides(SamplingParams(constraint=Constraint("json_schema", schema)))
