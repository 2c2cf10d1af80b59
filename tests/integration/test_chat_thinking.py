"""A real model that thinks aloud and knows tools by its template: SmolLM2 with another in its file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from stoker.tokenizer import load_tokenizer
from stoker.weights.gguf import GGUFFile

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 60.0
TEMPLATE = """{% if tools %}<|im_start|>system
{{ tools | tojson }} <tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% else %}<think>
{% endif %}{% endif %}"""
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}},
        },
    }
]


@pytest.fixture(scope="module")
def model(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's file with a template of the same size in place of its own."""
    with GGUFFile.open(smollm2_path) as file:
        given = load_tokenizer(file.metadata, file.header_digest()).chat_template.encode()
    data = smollm2_path.read_bytes()
    assert data.count(given) == 1
    assert len(TEMPLATE.encode()) <= len(given)
    path = tmp_path_factory.mktemp("thinks") / "thinks.gguf"
    # What a template has behind its last newline is a comment here: it renders as nothing.
    padding = len(given) - len(TEMPLATE.encode())
    filler = "{#" + " " * (padding - 4) + "#}" if padding >= 4 else " " * padding
    path.write_bytes(data.replace(given, (TEMPLATE + filler).encode()))
    return path


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[openai.OpenAI]:
    command = [sys.executable, "-m", "stoker", "serve", str(model), "--port", "0", "--no-disk-cache"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "STOKER_API_KEY": ""}
    process = subprocess.Popen(
        [*command, "--state", "none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    timer = threading.Timer(START_LIMIT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        timer.cancel()
        url = line.split()[0] + "/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as made:
            yield made
    finally:
        timer.cancel()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _asked(client: openai.OpenAI, **fields: Any) -> Any:
    extra = {
        name: fields.pop(name)
        for name in ("thinking_token_budget", "chat_template_kwargs", "min_tokens")
        if name in fields
    }
    return client.chat.completions.create(
        model="thinks", messages=QUESTION, extra_body=extra, **{"seed": 5, "max_tokens": 150, **fields}
    )


@pytest.mark.parametrize("budget", [1, 20])
def test_a_budget_ends_the_thoughts(client: openai.OpenAI, budget: int) -> None:
    # A model that was not taught to think may end where its thoughts do, so it is made to go on.
    answer = _asked(client, thinking_token_budget=budget, min_tokens=100)
    message, details = answer.choices[0].message, answer.usage.completion_tokens_details
    assert message.reasoning_content
    assert message.content
    assert "</think>" not in message.content + message.reasoning_content
    assert budget <= details.reasoning_tokens < budget + 40  # the closing sentence, and the mark


def test_streamed_thoughts_are_the_whole_ones(client: openai.OpenAI) -> None:
    whole = _asked(client, thinking_token_budget=15).choices[0].message
    reasoning, content = "", ""
    for chunk in _asked(client, thinking_token_budget=15, stream=True):
        delta = chunk.choices[0].delta
        more = (delta.model_extra or {}).get("reasoning_content", "")
        assert not (more and content), "thoughts after the answer began"
        reasoning += more
        content += delta.content or ""
    assert (reasoning, content) == (whole.reasoning_content, whole.content)


def test_json_comes_after_the_thoughts(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(3):
        answer = _asked(client, thinking_token_budget=10, response_format=form, seed=seed)
        message = answer.choices[0].message
        assert isinstance(json.loads(message.content)["rain"], bool)
        assert message.reasoning_content


def test_calls_come_after_the_thoughts(client: openai.OpenAI) -> None:
    answer = _asked(
        client, thinking_token_budget=10, tools=TOOLS, tool_choice="required", parallel_tool_calls=False
    )
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) <= {"city"}
    assert message.reasoning_content
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "fields", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}]
)
def test_thinking_can_be_switched_off(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    answer = _asked(client, max_tokens=20, **fields)
    message = answer.choices[0].message
    assert message.content
    assert "reasoning_content" not in (message.model_extra or {})
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
