"""Thoughts before an answer: their marks, their budget, and the constraint after them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.grammar.driving import allowed, bpe_tokenizer, can_write, guides

from stoker.api.constraint import Thinking
from stoker.api.errors import EngineError
from stoker.grammar.guide import Guide

TOKEN = Thinking("<think>", "</think>", begun=False)  # marks that are control tokens here
TEXT = Thinking("<thoughts>", "</thoughts>", begun=False)  # marks of several tokens
CLOSING = "\nEnough.\n"


def push(guide: Guide, text: str) -> None:
    """Push the tokens of a text, none of them masked or refused."""
    tokenizer = bpe_tokenizer()
    for token_id in tokenizer.encode(text, add_special=False, parse_special=True):
        if not guide.free:
            assert guide.forced[:1] in ((), (token_id,))
            assert guide.forced or token_id in allowed(guide, tokenizer), tokenizer.token_bytes(token_id)
        guide.push(token_id)


def run_forced(guide: Guide) -> str:
    """Push what is forced, and say what it was."""
    ids = guide.forced
    for token_id in ids:
        guide.push(token_id)
    return bpe_tokenizer().join_bytes(ids, skip_special=False).decode()


@pytest.mark.parametrize("marks", [TOKEN, TEXT])
def test_the_constraint_begins_after_the_thoughts(marks: Thinking) -> None:
    source = guides("regex", "[ab]+", thinking=marks)
    for text in (
        f"{marks.begin}red 12{marks.end}ab",
        f"{marks.begin}{marks.end}\n\na",
        "ab",
        f"{marks.begin}<x{marks.end}b",
    ):
        assert can_write(source.new(), text), text
    for text in (
        f"{marks.begin}red{marks.end}",
        f"{marks.begin}red",
        "red",
        f"{marks.begin}a{marks.end}c",
        "\n\na",
    ):
        assert not can_write(source.new(), text), text


def test_a_choice_may_begin_like_the_mark() -> None:
    source = guides("choice", choices=("<thin", "<thoughts", "<a"), thinking=TEXT)
    for text in ("<thin", "<thoughts", "<a", "<thoughts>x</thoughts><a"):
        assert can_write(source.new(), text), text
    assert not can_write(source.new(), "<th")


@pytest.mark.parametrize("rest", ["rue", "houghts>12</thoughts><true"])
def test_a_piece_of_the_mark_may_come_where_the_answer_is_forced(rest: str) -> None:
    """After `<` the token `true` is forced, and `t` of the mark may come: it fits both."""
    tokenizer = bpe_tokenizer()
    guide = guides("choice", choices=("<true",), thinking=TEXT).new()
    for char in "<t" + rest:
        (token_id,) = tokenizer.encode(char, add_special=False)
        while guide.forced and guide.forced[0] != token_id:  # the answer after the thoughts, whole
            assert rest.endswith("<true")
            guide.push(guide.forced[0])
            if guide.finished:
                return
        assert guide.forced or token_id in allowed(guide, tokenizer), char
        guide.push(token_id)
    assert guide.finished


@pytest.mark.parametrize("marks", [TOKEN, TEXT])
@pytest.mark.parametrize("kind", ["", "regex"])
def test_the_budget_closes_thoughts_gracefully(marks: Thinking, kind: str) -> None:
    marks = replace(marks, budget_tokens=3, closing=CLOSING)
    guide = guides(kind, "[ab]+" if kind else "", thinking=marks).new()
    push(guide, marks.begin + "red")  # as three tokens or fewer
    while not guide.forced:
        push(guide, "1")
    assert guide.thought_tokens == 3
    assert run_forced(guide) == CLOSING + marks.end
    assert guide.thought_tokens > 3, "what closes the thoughts is part of them"
    push(guide, "ab")
    assert guide.free is (not kind)
    assert guide.forced == ()


def test_a_mark_that_has_begun_is_only_completed() -> None:
    marks = replace(TEXT, begun=True, budget_tokens=4, closing=CLOSING)
    guide = guides(thinking=marks).new()
    for token_id in bpe_tokenizer().encode("12", add_special=False):
        guide.push(token_id)
    before = guide.thought_tokens
    for token_id in bpe_tokenizer().encode("</thoughts>", add_special=False)[: 4 - before]:
        assert not guide.forced
        guide.push(token_id)
    rest = run_forced(guide)
    assert rest
    assert rest != TEXT.end
    assert TEXT.end.endswith(rest)
    assert guide.thought_tokens == before


@pytest.mark.parametrize("begun", [False, True])
def test_no_budget_at_all_closes_thoughts_at_once(begun: bool) -> None:
    guide = guides("regex", "[ab]+", thinking=replace(TOKEN, begun=begun, budget_tokens=0)).new()
    if not begun:
        push(guide, "<think>")
    assert run_forced(guide) == "</think>"
    assert guide.thought_tokens == 0
    push(guide, "a")


def test_without_a_constraint_nothing_is_masked_and_thoughts_are_counted() -> None:
    guide = guides(thinking=TOKEN).new()
    push(guide, "\n<think>red 12</think>an answer")
    assert guide.free
    assert not guide.finished
    assert guide.thought_tokens == len(bpe_tokenizer().encode("red 12", add_special=False))


def test_an_answer_without_thoughts_has_none() -> None:
    guide = guides(thinking=replace(TOKEN, budget_tokens=0)).new()
    push(guide, "an answer about <think>ing")
    assert guide.thought_tokens == 0
    assert guide.forced == ()


def test_thoughts_do_not_end_the_text_before_a_constraint_is_met() -> None:
    tokenizer = bpe_tokenizer()
    guide = guides("regex", "a", thinking=replace(TOKEN, begun=True)).new()
    assert not set(tokenizer.stop_ids) & set(allowed(guide, tokenizer))
    assert guide.refuses(tokenizer.stop_ids[0])
    assert tokenizer.token_id("[CALLS]") not in allowed(guide, tokenizer), "nor have control tokens in them"
    assert tokenizer.token_id("</think>") in allowed(guide, tokenizer)
    free = guides(thinking=replace(TOKEN, begun=True)).new()
    assert not free.refuses(tokenizer.stop_ids[0])


def test_what_is_tokenized_across_the_end_of_a_mark_is_refused() -> None:
    tokenizer = bpe_tokenizer()
    marks = replace(TEXT, end="x<", begun=True)
    guide = guides("regex", "/a", thinking=marks).new()
    push(guide, "x")
    across = tokenizer.encode("</", add_special=False)
    assert len(across) == 1
    assert guide.refuses(across[0])
    assert can_write(guide, "</a")


def test_the_same_tokens_lead_to_the_same_state() -> None:
    marks = replace(TEXT, begun=True, budget_tokens=4, closing=CLOSING)
    source = guides("json_schema", '{"const": {"a": 1}}', thinking=marks)
    guide, pushed = source.new(), list[int]()
    push(guide, "12 r")
    pushed += bpe_tokenizer().encode("12 r", add_special=False)
    while not guide.finished:
        token_id = guide.forced[0] if guide.forced else allowed(guide, bpe_tokenizer())[0]
        twin = source.new()
        for earlier in pushed:
            twin.push(earlier)
        assert (twin.forced, twin.thought_tokens, twin.finished) == (
            guide.forced,
            guide.thought_tokens,
            False,
        )
        guide.push(token_id)
        pushed.append(token_id)
    assert bpe_tokenizer().join_bytes(pushed).decode().endswith('{"a": 1}')


def test_a_token_other_than_the_forced_one_is_an_error_of_the_caller() -> None:
    guide = guides(thinking=replace(TOKEN, begun=True, budget_tokens=0)).new()
    with pytest.raises(EngineError, match="is forced"):
        guide.push(guide.forced[0] + 1)
