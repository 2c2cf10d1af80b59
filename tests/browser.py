"""A real headless Chromium, driven through chromedriver's HTTP protocol. Standard library only."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # a test runs as root in a container
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
_KEYS = {
    "Enter": "\ue007",
    "Tab": "\ue004",
    "Escape": "\ue00c",
    "Shift": "\ue008",
    "Space": " ",
    "Home": "\ue011",
}
_DRIVER_START_S = 20
# The driver takes a free port of IPv6 and ends where the same number of IPv4 is in use, also by a client's
# connection, of which other tests have many.
_DRIVER_STARTS = 10
_COMMAND_S = 60


def needed_programs() -> tuple[str, str]:
    """The paths of browser and driver; skips the test where one is missing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not here: run scripts/install-chromium")
    return browser, driver


class Browser:
    """One browser window with a profile of its own. Use it as a context manager."""

    def __init__(self) -> None:
        browser, driver = needed_programs()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # it dies a moment after us
        self._driver, port = _started(driver)
        self._url = f"http://127.0.0.1:{port}"
        try:
            self._url += self._open_session(browser)
            self.open(
                "about:blank"
            )  # instead of the browser's own first page, whose requests are none of ours
            self.requested_urls()
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._command("DELETE", "")
        finally:
            self._stop()

    # --- what a person does ---

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._command("POST", "/url", {"url": url})

    def click(self, selector: str) -> None:
        """Click the first element that matches, as a mouse does: it must be seen."""
        self._command("POST", f"/element/{self._element(selector)}/click", {})

    def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        self._press(list(text))

    def press(self, *keys: str) -> None:
        """Press keys together, such as "Shift", "Tab"."""
        values = [_KEYS.get(key, key) for key in keys]
        actions = [{"type": "keyDown", "value": value} for value in values]
        actions += [{"type": "keyUp", "value": value} for value in reversed(values)]
        self._act(actions)

    def size(self, width: int, height: int) -> None:
        """The size of what is seen, in CSS pixels, one device pixel each."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, **features: str) -> None:
        """Media features of the user, such as prefers_color_scheme="dark"."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.devtools("Emulation.setEmulatedMedia", features=listed)

    # --- what is seen ---

    def script(self, code: str, *arguments: Any) -> Any:
        """What a function with this body returns."""
        return self._command("POST", "/execute/sync", {"script": code, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """The text of the first element that matches, as it is rendered."""
        return str(self.script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def wait_for(self, condition: str, *, timeout_s: float = 10.0) -> Any:
        """Wait until a JavaScript expression is true; its value. Fails with what is seen instead."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if value := self.script(f"return {condition}"):
                return value
            time.sleep(0.02)
        raise AssertionError(f"not within {timeout_s} s: {condition}\n{self.text('body')}\n{self.console()}")

    def screenshot(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self._command("GET", "/screenshot"))

    def accessible_names(self) -> list[tuple[str, str]]:
        """(role, name) of everything a screen reader is told of."""
        nodes = self.devtools("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]

    def console(self) -> list[str]:
        """Messages of the console since the last call, errors of the network and of the policy included."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._log("browser")]

    def requested_urls(self) -> list[str]:
        """Everything that was asked of any network since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._command("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    # --- the protocol ---

    def _open_session(self, browser: str) -> str:
        """The path of a new session."""
        options = {"binary": browser, "args": [*_ARGUMENTS, f"--user-data-dir={self._profile.name}"]}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        answer = self._command("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        return f"/session/{answer['sessionId']}"

    def _stop(self) -> None:
        self._driver.terminate()
        self._driver.wait(10)
        assert self._driver.stdout is not None
        self._driver.stdout.close()
        self._profile.cleanup()

    def _element(self, selector: str) -> str:
        found = self._command("POST", "/element", {"using": "css selector", "value": selector})
        return str(next(iter(found.values())))

    def _press(self, values: list[str]) -> None:
        self._act([{"type": kind, "value": v} for v in values for kind in ("keyDown", "keyUp")])

    def _act(self, actions: list[dict[str, str]]) -> None:
        self._command(
            "POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        )

    def _log(self, kind: str) -> list[dict[str, Any]]:
        return list(self._command("POST", "/se/log", {"type": kind}))

    def _command(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_COMMAND_S) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            said = json.load(error)["value"]
            raise AssertionError(f"{method} {path}: {said['error']}: {said['message']}") from None


def _started(driver: str) -> tuple[subprocess.Popen[str], int]:
    """A running driver and the port it listens on."""
    said = ""
    for _ in range(_DRIVER_STARTS):
        process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        timer = threading.Timer(_DRIVER_START_S, process.kill)
        timer.start()
        said = ""
        for line in process.stdout:  # ends with the process
            said += line
            if found := re.search(r"started successfully on port (\d+)", line):
                timer.cancel()
                return process, int(found.group(1))
        timer.cancel()
        process.wait()
        process.stdout.close()
        if "port not available" not in said:
            break
    raise AssertionError(f"chromedriver did not start; it said:\n{said}")


def write_png(path: Path, png: bytes) -> None:
    """Keep a screenshot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
