"""What a template's source tells, and that what is rendered for it satisfies what such templates insist on.

The templates here are small ones of our own, each as strict as the family it stands for.
"""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from stoker.api.chat import Chat, Message, Tool, ToolCall
from stoker.api.errors import RequestError
from stoker.tokenizer.chat import chat_values
from stoker.tools import call_format_named, chat_format

TOOLS = (
    Tool("weather", "Of a city", '{"type": "object", "properties": {"city": {"type": "string"}}}'),
    Tool("clock", "The time"),
)
CALLS = (ToolCall("call_1", "weather", '{"city": "Köln"}'), ToolCall("call_2", "clock", "{}"))
TURNS = (
    Message("system", "Be brief."),
    Message("user", "Rain?"),
    Message("assistant", "I look.", tool_calls=CALLS),
    Message("tool", "no", tool_call_id="call_1"),
    Message("tool", "noon", tool_call_id="call_2"),
    Message("assistant", "It is dry."),
    Message("user", "Thanks"),
)
ALTERNATES = """
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{ '<start_of_turn>' if gemma else '<s>' }}{{ m.role }} {{ m.content }}
{%- endfor %}"""
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
ONE_CALL = """{% if tools %}{{ tools | tojson }}{{ '"parameters": ' }}{% endif %}
{%- for m in messages %}<|start_header_id|>{{ m.role }}
{%- if 'tool_calls' in m %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('single tool-calls only') }}{% endif %}
{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}"""
NINE = """{% if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}
{%- if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{{ c.function | tojson }}
{%- if c.id | length != 9 %}{{ raise_exception('length 9') }}{% endif %}{% endfor %}
{%- elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('length 9') }}{% endif %}
{%- endif %}{{ m.content }}{% endfor %}"""
TAGS = """{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}
{%- for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"""


def _rendered(template: str, messages: tuple[Message, ...]) -> str:
    def fail(message: str) -> None:
        raise AssertionError(message)

    shown, tools = chat_format(template).rendered(messages, TOOLS)
    values: dict[str, Any] = chat_values(Chat(shown, tools))
    environment = jinja2.Environment(autoescape=False)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.from_string(template).render(raise_exception=fail, **values)


@pytest.mark.parametrize("template", [ALTERNATES, NO_SYSTEM + ALTERNATES, ONE_CALL, NINE, TAGS])
@pytest.mark.parametrize("messages", [TURNS, TURNS[1:], TURNS[:5]])
def test_a_template_shows_all_of_a_conversation(template: str, messages: tuple[Message, ...]) -> None:
    text = _rendered(template, messages)
    said = ["Of a city", "Rain?", "weather", "Köln", "clock", "no", "noon"]
    if messages[-1].role == "user":
        said += ["It is dry.", "Thanks"]
    places = [text.rfind(words) for words in said[1:]]
    assert "Of a city" in text
    assert all(place >= 0 for place in places)
    if messages[0].role == "system":
        assert "Be brief." in text


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (None, "generic"),
        ("{{ messages }}", "generic"),
        ("<start_of_turn>{{ messages }}", "gemma"),
        (TAGS, "hermes"),
        (ONE_CALL, "llama3"),
        (NINE, "mistral"),
        ("{{ tools }}{{ '[TOOL_CALLS] [' }}", "mistral-spaced"),
        ("{{ tools }}{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral-named"),
        ("{{ tools }}<tool_call><function=name>", "generic"),
        ("{{ tools }}<tool_call>name<arg_key>", "generic"),
        ("{{ tools }}<|unheard_of|>", "generic"),
    ],
)
def test_a_template_tells_its_calls(template: str | None, name: str) -> None:
    assert chat_format(template).calls.name == name


def test_a_format_that_is_not_known() -> None:
    with pytest.raises(RequestError, match="hermes, llama3, mistral"):
        call_format_named("xml")


PROMPT = "{{ '</think>' }}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
OFF = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}"


@pytest.mark.parametrize(
    ("template", "variables", "begun"),
    [
        (PROMPT + OFF + "{% endif %}{% endif %}", {}, False),
        (PROMPT + OFF + "{% endif %}{% endif %}", {"enable_thinking": False}, False),
        (PROMPT + OFF + "{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}", {}, True),
        (
            PROMPT + OFF + "{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}",
            {"enable_thinking": False},
            False,
        ),
        (PROMPT + "{{ '<think>\\n' }}{% endif %}", {}, True),
        (PROMPT + "<think>{% endif %}", {}, True),
        (
            PROMPT + "{% if not thinking %}{{ '</think>' }}{% else %}{{ '<think>' }}{% endif %}{% endif %}",
            {},
            False,
        ),
        (
            PROMPT + "{% if not thinking %}{{ '</think>' }}{% else %}{{ '<think>' }}{% endif %}{% endif %}",
            {"thinking": True},
            True,
        ),
    ],
)
def test_whether_a_prompt_ends_inside_of_thoughts(
    template: str, variables: dict[str, Any], begun: bool
) -> None:
    thinking = chat_format(template).thoughts(variables, 100)
    assert thinking is not None
    assert (thinking.begin, thinking.end, thinking.begun) == ("<think>", "</think>", begun)
    assert thinking.budget_tokens == 100


def test_most_models_do_not_think_aloud() -> None:
    for template in (None, TAGS, ONE_CALL, "{{ 'thinking' }}"):
        assert chat_format(template).thoughts({}, None) is None
    assert chat_format("[/THINK]{{ reasoning_effort }}").thoughts({}, None) is not None
