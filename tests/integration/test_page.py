"""The page at / in a real headless Chromium, served by the real server in front of scripted models."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest
import uvicorn
from tests.browser import Browser
from tests.unit.telemetry.fake_host import FakeHost, FakeModel, done, tokens

from stoker.api import Chat, EngineStats, HotPrefix, Request
from stoker.api.errors import EngineError, PromptTooLongError
from stoker.api.events import Event
from stoker.server import ServerOptions
from stoker.server.app import build_app
from stoker.server.service import Views
from stoker.telemetry import METRICS_CONTENT_TYPE, Metrics, ObservedHost, stats_json

pytestmark = pytest.mark.slow  # half a minute in all: a real browser types key by key

WORDS = ("Shovel", " coal", ",", " watch", " the", " `gauge`", ",", " rake", " **ash**", ".")
SAID = "Shovel coal, watch the gauge, rake ash."  # as it is rendered
STATS = EngineStats(
    running=3, waiting=1, blocks=1000, blocks_free=250, blocks_cached=650, blocks_held=100,
    prompt_tokens=4000, generated_tokens=1234, prefix_queries_tokens=4000, prefix_hits_tokens=3000,
    disk_blocks=77, disk_hits_tokens=160, evictions=5,
    hottest=(HotPrefix(40, 12, (7, 8), (0, 1)), HotPrefix(2, 3, (2, 3), ())),
)  # fmt: skip


@dataclass
class Answerer:
    """What the scripted models say, and what they were asked. `go_on` lets a held answer continue."""

    requests: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    fails: bool = True

    async def answer(self, request: Request) -> AsyncIterator[Event]:
        self.requests.append(request)
        asked = request.prompt
        if isinstance(asked, Chat):
            asked = asked.messages[-1].content
        assert isinstance(asked, str)
        if "too long" in asked and self.fails:
            raise PromptTooLongError("prompt is 9000 tokens; allowed: at most 8192")
        words = ("<img src=x onerror=alert(1)>", "<script>alert(1)</script>") if "html" in asked else WORDS
        finished = False
        try:
            for number, word in enumerate(words):
                yield tokens(request, word)
                await asyncio.sleep(0.005)
                if number == 1 and "hold" in asked:
                    while not self.go_on.is_set():
                        await asyncio.sleep(0.01)
                if number == 3 and "break" in asked:
                    raise EngineError("the engine failed under way")
            finished = True
            yield done(request, len(words), cached=32)
        finally:
            if not finished:
                self.aborted.append(request.request_id)


class Server:
    """The whole server on a free port, in a thread."""

    def __init__(self, *, api_keys: tuple[str, ...] = ()) -> None:
        self.answerer = Answerer()
        self.model = FakeModel("scripted", self.answerer.answer, stats=STATS)
        self.base = FakeModel("base", self.answerer.answer, has_chat_template=False)
        self.stats_calls = 0
        metrics = Metrics()
        host = ObservedHost(FakeHost(self.model, self.base, offered=("later",)), metrics.measures)

        async def stats() -> dict[str, object]:
            self.stats_calls += 1
            return await stats_json(host)

        views = Views(lambda: metrics.exposition(host), METRICS_CONTENT_TYPE, stats)
        app, _ = build_app(host, ServerOptions(api_keys=api_keys), views=views)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def close(self) -> None:
        self.answerer.go_on.set()
        self._server.force_exit = True
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture
def server() -> Iterator[Server]:
    opened = Server()
    yield opened
    opened.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    """The page, freshly opened in a wide light window, its live figures there."""
    return _open(browser, server)


def _open(browser: Browser, server: Server) -> Browser:
    browser.size(1280, 860)
    browser.prefer(prefers_color_scheme="light")
    browser.open("about:blank")  # the page before still asks its server, which may have gone
    browser.console()
    browser.requested_urls()
    browser.open(server.url)
    browser.wait_for("document.getElementById('health').textContent === 'Ready'")
    return browser


def _ask(page: Browser, text: str) -> None:
    page.script("document.getElementById('prompt').focus()")
    page.type(text)
    page.press("Enter")


def _wait_for_answers(page: Browser, count: int) -> None:
    page.wait_for(f"document.querySelectorAll('.facts').length === {count}")


def _answers(page: Browser) -> list[str]:
    return page.script("return [...document.querySelectorAll('.assistant .said')].map(e => e.innerText)")


def _until(condition, *, timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- the page itself ---


def test_it_loads_without_an_error_and_from_nowhere_else(page: Browser, server: Server) -> None:
    _ask(page, "Hello")
    _wait_for_answers(page, 1)
    assert page.console() == []
    urls = page.requested_urls()
    assert {url for url in urls if not url.startswith(server.url)} == set()
    assert {server.url + name for name in ("", "page/page.css", "page/page.js", "stats")} <= set(urls)
    assert page.script("return document.title") == "Stoker"


def test_its_policy_lets_nothing_run_that_is_not_its_own(page: Browser) -> None:
    page.script(
        "const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "const image = document.createElement('img'); image.src = 'http://example.invalid/x.png';"
        "document.body.append(script, image);"
    )
    time.sleep(0.2)
    assert page.script("return window.ran ?? null") is None
    assert sum("Content Security Policy" in line for line in page.console()) == 2


def test_the_live_figures_are_the_engine_s(page: Browser) -> None:
    page.wait_for("document.getElementById('rate').textContent !== '–'")
    for name, value in {
        "running": "3", "waiting": "1", "hit-rate": "75\u202f%", "blocks": "1,000 blocks",
        "blocks-held": "100", "blocks-cached": "650", "blocks-free": "250",
        "generated-tokens": "1,234", "disk-blocks": "77", "disk-tokens": "160", "evictions": "5",
    }.items():  # fmt: skip
        assert page.script("return document.getElementById(arguments[0]).textContent", name) == value
    widths = page.script("return [...document.querySelectorAll('#bar span')].map(e => e.offsetWidth)")
    assert [round(1000 * width / sum(widths), -1) for width in widths] == [100, 650, 250]
    assert page.text("#hottest li:nth-child(1)").split("\n\n") == ["hi … ab", "12 hits, 40 tokens"]
    assert page.text("#hottest li:nth-child(2)").split("\n\n") == ["cd", "3 hits, 2 tokens"]


def test_the_rate_is_that_of_the_counter(page: Browser, server: Server) -> None:
    import dataclasses

    stop = threading.Event()

    def count() -> None:
        start = time.monotonic()
        while not stop.wait(0.01):
            tokens_so_far = 1234 + int(500 * (time.monotonic() - start))
            server.model.engine_stats = dataclasses.replace(STATS, generated_tokens=tokens_so_far)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        page.wait_for("Math.abs(document.getElementById('rate').textContent - 500) < 50")
    finally:
        stop.set()
        thread.join()
    server.model.engine_stats = STATS  # fewer than before: an engine that has started again
    page.wait_for("document.getElementById('rate').textContent === '0'")


def test_it_asks_for_no_figures_while_it_is_hidden(page: Browser, server: Server) -> None:
    set_hidden = (
        "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'));"
    )
    page.script(set_hidden, True)
    time.sleep(0.3)
    calls = server.stats_calls
    time.sleep(1.5)
    assert server.stats_calls == calls
    page.script(set_hidden, False)
    _until(lambda: server.stats_calls > calls)


def test_a_model_that_is_not_loaded_is_said_to_be_so(page: Browser) -> None:
    page.script(
        "const m = document.getElementById('model'); m.value = 'later'; m.dispatchEvent(new Event('change'))"
    )
    assert page.text("#live-note") == "later is not loaded. Its first request loads it."
    assert page.text("#health") == "Not loaded"


def test_a_server_that_is_gone_is_said_to_be_so(browser: Browser) -> None:
    server = Server()
    page = _open(browser, server)
    server.close()
    page.wait_for("document.getElementById('health').textContent === 'Not connected'")
    assert page.text("#live-note") == "No live figures: The server was not reached."
    _ask(page, "Hello")
    page.wait_for("document.querySelector('.note.error button')")
    assert "The server was not reached." in page.text(".note.error")


# --- the conversation ---


def test_an_answer_is_seen_as_it_comes(page: Browser, server: Server) -> None:
    _ask(page, "hold on")
    page.wait_for("document.querySelector('.assistant .said')?.innerText.startsWith('Shovel coal')")
    assert page.script("return document.querySelector('.assistant').getAttribute('aria-busy')") == "true"
    assert page.script("return document.getElementById('send').hidden") is True
    server.answerer.go_on.set()
    _wait_for_answers(page, 1)
    assert _answers(page) == [SAID]
    assert page.script("return document.querySelector('.said code').textContent") == "gauge"
    assert page.script("return document.querySelector('.said strong').textContent") == "ash"
    assert page.script("return document.querySelector('.assistant').getAttribute('aria-busy')") == "false"
    facts = page.text(".facts")
    assert "10 tokens" in facts
    assert "32 of 40 prompt tokens cached" in facts
    assert f"seed {server.answerer.requests[0].sampling.seed}" in facts


def test_the_whole_conversation_is_sent(page: Browser, server: Server) -> None:
    _ask(page, "First")
    _wait_for_answers(page, 1)
    page.press("Shift", "Enter")
    _ask(page, "Second")
    _wait_for_answers(page, 2)
    sent = server.answerer.requests[1]
    said = "".join(WORDS)
    assert [(m.role, m.content) for m in sent.prompt.messages] == [
        ("user", "First"), ("assistant", said), ("user", "\nSecond"),
    ]  # fmt: skip
    page.click("#new-chat")
    assert page.script("return document.getElementById('messages').children.length") == 0
    _ask(page, "Third")
    _wait_for_answers(page, 1)
    assert [m.content for m in server.answerer.requests[2].prompt.messages] == ["Third"]


@pytest.mark.parametrize("how", ["button", "key"])
def test_stopping_ends_the_request_and_keeps_what_came(page: Browser, server: Server, how: str) -> None:
    _ask(page, "hold on")
    page.wait_for("document.querySelector('.assistant .said')?.innerText.startsWith('Shovel coal')")
    if how == "button":
        page.click("#stop")
    else:
        page.press("Escape")
    _wait_for_answers(page, 1)
    _until(lambda: len(server.answerer.aborted) == 1)
    assert "stopped" in page.text(".facts")
    assert page.script("return document.getElementById('stop').hidden") is True
    _ask(page, "Go on")
    _wait_for_answers(page, 2)
    sent = server.answerer.requests[1].prompt.messages
    assert [m.content for m in sent] == ["hold on", "Shovel coal", "Go on"]
    assert page.console() == []


def test_a_refusal_is_shown_and_can_be_tried_again(page: Browser, server: Server) -> None:
    _ask(page, "This is too long")
    page.wait_for("document.querySelector('.note.error button')")
    assert page.text(".note.error").startswith("prompt is 9000 tokens; allowed: at most 8192")
    server.answerer.fails = False
    page.click(".note.error button")
    _wait_for_answers(page, 1)
    assert page.script("return document.querySelector('.note.error')") is None
    assert [m.content for m in server.answerer.requests[1].prompt.messages] == ["This is too long"]


def test_an_answer_that_breaks_off_keeps_what_came(page: Browser) -> None:
    _ask(page, "break it")
    page.wait_for("document.querySelector('.note.error button')")
    assert _answers(page) == ["Shovel coal, watch"]
    assert "the engine failed while answering" in page.text(".note.error")


def test_what_a_model_says_is_text_and_nothing_else(page: Browser) -> None:
    _ask(page, "some html")
    _wait_for_answers(page, 1)
    assert _answers(page) == ["<img src=x onerror=alert(1)><script>alert(1)</script>"]
    assert page.script("return document.querySelectorAll('.said img, .said script').length") == 0
    assert page.console() == []


def test_a_base_model_continues_the_text(page: Browser, server: Server) -> None:
    page.script(
        "const m = document.getElementById('model'); m.value = 'base'; m.dispatchEvent(new Event('change'))"
    )
    assert "no chat template" in page.text("label[for=prompt]") or page.script(
        "return document.getElementById('prompt').placeholder.includes('no chat template')"
    )
    _ask(page, "Once")
    _wait_for_answers(page, 1)
    _ask(page, " more")
    _wait_for_answers(page, 2)
    assert [request.prompt for request in server.answerer.requests] == ["Once", f"Once{''.join(WORDS)} more"]


def test_settings_reach_the_request_and_are_kept(page: Browser, server: Server) -> None:
    page.click("#settings-button")
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 99, "seed": 4711}
    for name, value in given.items():
        page.click(f"input[name={name}]")
        page.type(str(value))
    page.click("textarea[name=system]")
    page.type("Be brief.")
    _ask(page, "Hello")
    _wait_for_answers(page, 1)
    page.open(server.url)
    _ask(page, "Again")
    _wait_for_answers(page, 1)
    for request, text in zip(server.answerer.requests, ("Hello", "Again"), strict=True):
        sent = [(m.role, m.content) for m in request.prompt.messages]
        assert sent == [("system", "Be brief."), ("user", text)]
        assert {name: getattr(request.sampling, name) for name in given} == given
    page.click("#settings-button")
    page.click("#reset")
    _ask(page, "Once more")
    _wait_for_answers(page, 2)
    assert server.answerer.requests[2].sampling.temperature == 1.0
    assert [m.role for m in server.answerer.requests[2].prompt.messages] == ["user", "assistant", "user"]


def test_a_setting_out_of_range_is_not_sent(page: Browser, server: Server) -> None:
    page.click("#settings-button")
    page.click("input[name=top_p]")
    page.type("7")
    page.click("#settings-button")
    _ask(page, "Hello")
    page.wait_for("!document.getElementById('settings').hidden")
    assert page.script("return document.activeElement.name") == "top_p"
    assert server.answerer.requests == []
    page.click("#reset")


def test_the_seed_of_an_answer_gives_it_again(page: Browser, server: Server) -> None:
    _ask(page, "Hello")
    _wait_for_answers(page, 1)
    page.click(".facts button")
    page.click("#new-chat")
    _ask(page, "Hello")
    _wait_for_answers(page, 1)
    first, second = server.answerer.requests
    assert first.sampling == second.sampling
    page.click("#settings-button")
    page.click("#reset")


# --- for whom ---


def test_everything_can_be_done_with_the_keyboard(page: Browser, server: Server) -> None:
    reached = []
    while "skip" not in reached and len(reached) < 20:
        page.press("Shift", "Tab")  # from the message box, which has the focus at first
        reached.append(page.script("const e = document.activeElement; return e.id || e.className"))
    assert reached == ["scroll", "new-chat", "model", "skip"]
    page.press("Enter")
    assert page.script("return document.activeElement.id") == "prompt"
    page.press("Tab")
    assert page.script("return document.activeElement.id") == "settings-button"
    page.press("Enter")
    page.wait_for("!document.getElementById('settings').hidden")
    page.press("Shift", "Tab")
    page.press("Shift", "Tab")
    page.press("Shift", "Tab")
    assert page.script("return document.activeElement.name") == "seed"
    page.type("5")
    page.press("Tab")
    page.press("Tab")
    assert page.script("return document.activeElement.id") == "prompt"
    page.type("Hello")
    page.press("Tab")
    page.press("Tab")
    assert page.script("return document.activeElement.id") == "send"
    page.press("Enter")
    _wait_for_answers(page, 1)
    assert server.answerer.requests[0].sampling.seed == 5
    assert page.script("return document.activeElement.id") in ("prompt", "stop")
    page.script("localStorage.clear()")


def test_every_control_has_a_name_that_is_read_out(page: Browser) -> None:
    page.click("#settings-button")
    _ask(page, "Hello")
    _wait_for_answers(page, 1)
    names = page.accessible_names()
    controls = [
        (role, name)
        for role, name in names
        if role in ("button", "textbox", "combobox", "spinbutton", "image")
    ]
    assert len(controls) > 12
    assert [control for control in controls if not control[1]] == []
    assert ("combobox", "Model") in names
    assert ("textbox", "Message") in names
    assert ("spinbutton", "Temperature") in names
    assert ("image", "Of 1,000 blocks: 100 held by requests, 650 cached, 250 free") in names
    headings = [name for role, name in names if role == "heading"]
    assert {"Stoker", "Chat", "Live", "Hottest prefixes"} <= set(headings)
    assert page.text("#announcement").startswith("Answer complete: Shovel coal")


_CONTRASTS = """
const channel = c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && e.offsetWidth > 1
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
  const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  return [(a + .05) / (b + .05), e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 30)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(page: Browser, scheme: str) -> None:
    page.prefer(prefers_color_scheme=scheme)
    page.click("#settings-button")
    _ask(page, "Hello")
    _wait_for_answers(page, 1)
    _ask(page, "This is too long")
    page.wait_for("document.querySelector('.note.error button')")
    contrasts = page.script(_CONTRASTS)
    assert len(contrasts) > 40
    assert [what for ratio, what in contrasts if ratio < 4.5] == []
    ground = page.script("return getComputedStyle(document.body).backgroundColor")
    levels = [int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")]
    assert max(levels) < 60 if scheme == "dark" else min(levels) > 200


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1920])
def test_nothing_is_cut_off_on_any_screen(page: Browser, width: int) -> None:
    page.size(width, 700)
    _ask(page, "x" * 300)
    _wait_for_answers(page, 1)
    assert page.script("return document.documentElement.scrollWidth") <= width
    box = page.script("return document.getElementById('send').getBoundingClientRect().toJSON()")
    assert 0 <= box["left"] < box["right"] <= width
    assert 0 <= box["top"] < box["bottom"] <= 700
    last = page.script("return document.querySelector('.facts').getBoundingClientRect().bottom")
    assert last < box["top"]  # the end of the answer is seen, above the message box


# --- the key ---


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Browser) -> None:
    server = Server(api_keys=("right-key",))
    try:
        browser.size(1280, 860)
        browser.open(server.url)
        browser.wait_for("document.getElementById('key-dialog').open")
        assert browser.script("return document.activeElement.id") == "key"
        browser.type("wrong")
        browser.press("Enter")
        browser.wait_for("document.getElementById('key-note').textContent.includes('did not accept')")
        browser.script("document.getElementById('key').select()")
        browser.type("right-key")
        browser.press("Enter")
        browser.wait_for("document.getElementById('health').textContent === 'Ready'")
        _ask(browser, "Hello")
        _wait_for_answers(browser, 1)
        assert browser.script("return JSON.stringify(localStorage).includes('right-key')") is False
        browser.open(server.url)
        browser.wait_for("document.getElementById('health').textContent === 'Ready'")
        assert browser.script("return document.getElementById('key-dialog').open") is False
    finally:
        server.close()
