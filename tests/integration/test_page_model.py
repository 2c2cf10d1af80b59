"""The page in a real browser, in front of `stoker serve` with a real model: what a user sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.browser import Browser, needed_programs

pytestmark = [pytest.mark.slow, pytest.mark.model]
_START_S = 60


@pytest.fixture(scope="module")
def url(smollm2_path: Path) -> Iterator[str]:
    """The address of `stoker serve` with SmolLM2, its log checked at the end."""
    needed_programs()
    # Without drafts: an answer that falls into a loop would be over before it can be stopped.
    command = [sys.executable, "-m", "stoker", "serve", str(smollm2_path), "--port", "0", "--no-disk-cache"]
    command += ["--speculation", "off"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "STOKER_API_KEY": ""}
        )
        assert server.stdout is not None
        try:
            line = server.stdout.readline()  # ends with the process, if it fails
            assert line.startswith("http://127.0.0.1:"), line
            yield line.split()[0] + "/"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(_START_S)
            server.stdout.close()
        log.seek(0)
        lines = [json.loads(line) for line in log.read().splitlines()]
    assert [line for line in lines if line["level"] in ("warning", "error")] == []
    assert {"request finished", "request aborted"} <= {line["event"] for line in lines}


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Browser]:
    with Browser() as browser:
        browser.size(1280, 860)
        browser.open(url)
        browser.wait_for("document.getElementById('health').textContent === 'Ready'")
        yield browser


def _ask(page: Browser, text: str, *, answers: int) -> None:
    page.script("document.getElementById('prompt').focus()")
    page.type(text)
    page.press("Enter")
    page.wait_for(f"document.querySelectorAll('.facts').length === {answers}", timeout_s=60)


def _last(page: Browser) -> str:
    return page.script("return [...document.querySelectorAll('.assistant .said')].at(-1).innerText")


def test_a_conversation_its_seed_and_its_figures(page: Browser) -> None:
    page.click("#settings-button")
    page.click("input[name=max_tokens]")
    page.type("40")
    _ask(page, "Name a colour.", answers=1)
    first = _last(page)
    assert first  # by a seed drawn just now: some answers are one word
    _ask(page, "Name another one.", answers=2)
    facts = page.text(".assistant:last-child .facts")
    cached = int(facts.split(" prompt tokens cached")[0].split(" of ")[0].split()[-1])
    assert cached >= 16  # the first turn was computed once
    page.wait_for("Number(document.getElementById('blocks-cached').textContent.replace(',', '')) > 0")
    page.wait_for("document.getElementById('hit-rate').textContent !== '–'")
    page.wait_for("document.querySelectorAll('#hottest li').length > 0")
    assert "Name a colour" in page.text("#hottest") or "system" in page.text("#hottest")

    page.click(".facts button")  # the first answer's seed
    page.click("#new-chat")
    _ask(page, "Name a colour.", answers=1)
    assert _last(page) == first
    page.click("#reset")
    page.click("#new-chat")


def test_stopping_frees_the_engine_and_nothing_is_wrong(page: Browser, url: str) -> None:
    page.script("document.getElementById('prompt').focus()")
    # The seed is the page's: what is asked for is long at every one. (A count in words once ended after 8
    # tokens.)
    page.type("Write a long story about a dragon and a stoker, in ten chapters of a page each.")
    page.press("Enter")
    page.wait_for("document.querySelector('.assistant .said')?.innerText.length > 0", timeout_s=30)
    page.press("Escape")
    page.wait_for("document.querySelectorAll('.facts').length === 1")
    assert "stopped" in page.text(".facts")
    end = time.monotonic() + 10
    while (stats := json.load(urllib.request.urlopen(url + "stats"))["models"][0]["stats"])["running"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert stats["blocks_held"] == 0
    assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks"]
    assert page.console() == []
    assert {request for request in page.requested_urls() if not request.startswith(url)} == set()


def test_the_metrics_say_what_the_page_has_seen(page: Browser, url: str) -> None:
    with urllib.request.urlopen(url + "metrics") as answer:
        families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
    reasons = {s.labels["finished_reason"]: s.value for s in families["vllm:request_success"].samples}
    assert reasons["abort"] == 1
    assert reasons["stop"] + reasons["length"] == 3
    hits, queries = (families[f"vllm:prefix_cache_{name}"].samples[0].value for name in ("hits", "queries"))
    assert 0 < hits < queries
    gaps = [
        s.value for s in families["stoker_inter_token_latency_seconds"].samples if s.name.endswith("_count")
    ]
    assert 0 < gaps[0] < families["stoker_generated_tokens"].samples[0].value
