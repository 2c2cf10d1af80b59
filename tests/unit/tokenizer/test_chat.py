"""Chats to ids: control tokens come from the template alone, and everything else is as if joined by hand."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.tokenizer.synthetic import bpe_metadata

from stoker.api.errors import TemplateError
from stoker.tokenizer import Tokenizer, build_tokenizer
from stoker.tokenizer.chat import ChatTemplate, encode_chat

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part['text'] if part['type'] == 'text' else '[?]' }}{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}"
)


def _tokenizer(template: str | None = CHATML, **extra: Any) -> Tokenizer:
    return build_tokenizer(bpe_metadata(**{"tokenizer.chat_template": template, **extra}))


TOKENIZER = _tokenizer()
contents = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<", ">", "|>", " hello", "\n", "\ue000", "x"]
    ),
    max_size=6,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(contents, min_size=1, max_size=4))
def test_control_tokens_come_from_the_template_alone(texts: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    template = ChatTemplate(TOKENIZER)
    rendered = template.render(messages)
    plain = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in texts) + "<|im_start|>assistant\n"
    assert rendered.text == plain
    ids = template.encode(messages)
    assert TOKENIZER.decode(ids, skip_special=False) == plain
    assert ids.count(0) == len(texts) + 1
    assert ids.count(1) == len(texts)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="hello wrd\n<|", max_size=30))
def test_plain_contents_are_encoded_in_one_piece(text: str) -> None:
    """Without control texts the ids are those of the rendered string, merges across the seams included."""
    template = ChatTemplate(_tokenizer("{% for m in messages %}he{{ m.content }}lo<|im_end|>{% endfor %}"))
    ids = template.encode([{"role": "user", "content": text}])
    assert ids == TOKENIZER.encode(f"he{text}lo<|im_end|>", parse_special=True)


def test_two_contents_cannot_make_a_control_token_together() -> None:
    template = ChatTemplate(_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}"))
    ids = template.encode([{"role": "a", "content": "<|im_"}, {"role": "b", "content": "end|>"}])
    assert not any(TOKENIZER.is_special(index) for index in ids)
    trimmed = ChatTemplate(_tokenizer("{% for m in messages %}{{ m.content | trim }}{% endfor %}"))
    ids = trimmed.encode([{"role": "a", "content": " <|im_ "}, {"role": "b", "content": "\nend|>"}])
    assert not any(TOKENIZER.is_special(index) for index in ids)


def test_a_template_may_build_control_tokens_from_roles() -> None:
    source = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    extra = {"tokenizer.chat_template": source}
    tokenizer = build_tokenizer(bpe_metadata(specials=("<|user|>", "<|end|>"), **extra))
    assert encode_chat(tokenizer, [{"role": "user", "content": "<|user|>"}]).count(0) == 1


def test_tools_and_names_are_user_text_too() -> None:
    template = ChatTemplate(_tokenizer("{{ tools | tojson }}{{ messages[0].name }}{{ extra }}<|im_end|>"))
    rendered = template.render(
        [{"role": "user", "content": "", "name": "<|im_end|>"}],
        tools=[{"name": "f", "description": "<|im_end|>", "<|im_end|>": 1}],
        variables={"extra": "<|im_end|>"},
    )
    assert rendered.text.count("<|im_end|>") == 5
    ids = template.encode(
        [{"role": "user", "content": "", "name": "<|im_end|>"}], tools=[{"d": "<|im_end|>"}]
    )
    assert ids.count(1) == 1


def test_contents_keep_working_as_strings() -> None:
    source = (
        "{{ messages[0].content.strip().split('</t>')[-1] | upper }}{{ 'y' if 'b' in messages[0].content }}"
    )
    rendered = ChatTemplate(_tokenizer(source)).render([{"role": "u", "content": " a</t>b<|im_end|> "}])
    assert rendered.text == "B<|im_end|>y"


def test_lists_of_parts() -> None:
    parts = [{"type": "text", "text": "a<|im_end|>"}, {"type": "text", "text": "b"}]
    message = {"role": "user", "content": parts}
    assert "a<|im_end|>\nb" in ChatTemplate(TOKENIZER).render([message]).text
    assert ChatTemplate(_tokenizer(PARTS)).render([message]).text == "<|im_start|>a<|im_end|>b<|im_end|>"
    assert ChatTemplate(_tokenizer(PARTS)).encode([message]).count(1) == 1
    with pytest.raises(TemplateError, match="image_url"):
        ChatTemplate(TOKENIZER).render([{"role": "user", "content": [{"type": "image_url", "url": "x"}]}])


def test_a_model_without_a_template_says_what_to_do() -> None:
    with pytest.raises(TemplateError, match="plain completion"):
        ChatTemplate(_tokenizer(None))
    ids = encode_chat(_tokenizer(None), [{"role": "user", "content": "x"}], template=CHATML)
    assert ids == encode_chat(TOKENIZER, [{"role": "user", "content": "x"}])


def test_the_begin_token_comes_once() -> None:
    extra = {"tokenizer.ggml.add_bos_token": True}
    message = [{"role": "user", "content": "x"}]
    assert encode_chat(_tokenizer("{{ bos_token }}{{ messages[0].content }}", **extra), message).count(0) == 1
    assert encode_chat(_tokenizer("{{ messages[0].content }}", **extra), message)[0] == 0


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        {"role": "user"},
        ["x"],
        [{"content": "no role"}],
        [{"role": 3, "content": ""}],
        [{"role": "user", "content": b"bytes"}],
        [{"role": "user", "content": object()}],
        [{"role": "user", 5: ""}],
    ],
)
def test_messages_that_are_none_are_refused(messages: Any) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(TOKENIZER).render(messages)


def test_deep_and_cyclic_messages_are_refused() -> None:
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    with pytest.raises(TemplateError, match="nest deeper"):
        ChatTemplate(TOKENIZER).render([{"role": "user", "content": cyclic}])


def test_time_is_only_what_the_caller_says() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}no clock{% endif %}"
    template = ChatTemplate(_tokenizer(source))
    message = [{"role": "user", "content": ""}]
    assert template.render(message).text == "no clock"
    assert template.render(message, now=datetime.datetime(2026, 2, 3)).text == "03 Feb 2026"
    with pytest.raises(TemplateError, match="pass now="):
        ChatTemplate(_tokenizer("{{ strftime_now('%Y') }}")).render(message)
    with pytest.raises(TemplateError, match="plain directives"):
        ChatTemplate(_tokenizer("{{ strftime_now('%999999999d') }}")).render(
            message, now=datetime.datetime(2026, 2, 3)
        )
