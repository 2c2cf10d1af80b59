"""What tests of batches share: a server with a state, lines, uploads, waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.fake_host import FakeHost, FakeModel
from tests.served import Served, serve

from stoker.api.request import Request
from stoker.server.options import ServerOptions
from stoker.state import StateSource, locate_state

CHAT = "/v1/chat/completions"
FINISHED = ("completed", "failed", "expired", "cancelled")


def echo(request: Request, seed: int) -> str:
    """The last message, and the seed."""
    prompt: Any = request.prompt
    messages = getattr(prompt, "messages", prompt)
    return f"{messages if isinstance(messages, str) else messages[-1].content} {seed}"


@contextmanager
def serving(folder: Path, model: FakeModel | None = None, **options: Any) -> Iterator[Served]:
    location = locate_state(str(folder / "state.db"))
    assert location is not None
    host = FakeHost(model or FakeModel(answer=echo))
    with serve(host, ServerOptions(**options), state=StateSource(location)) as running:
        yield running


def line(custom_id: Any, content: str = "hi", url: str = CHAT, **body: Any) -> dict[str, Any]:
    fields = {"messages": [{"role": "user", "content": content}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": fields}


def text_of(lines: Iterable[Any]) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


def upload(served: Served, data: bytes, purpose: str = "batch", **headers: str) -> str:
    found = httpx.post(
        served.url + "/v1/files",
        files={"file": ("in.jsonl", data)},
        data={"purpose": purpose},
        headers=headers,
        timeout=20,
    )
    assert found.status_code == 200, found.text
    return str(found.json()["id"])


def create(served: Served, file_id: str, endpoint: str = CHAT, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", **fields}
    return served.post("/v1/batches", body, **headers)


def begin(served: Served, lines: Iterable[Any], **fields: Any) -> str:
    found = create(served, upload(served, text_of(lines)), **fields)
    assert found.status_code == 200, found.text
    assert found.json()["status"] == "validating"
    return str(found.json()["id"])


def wait_for(served: Served, batch_id: str, until: Callable[[Any], bool] | None = None) -> Any:
    """The batch once it is finished, or as `until` says."""
    deadline = time.monotonic() + 20
    while True:
        found = served.get(f"/v1/batches/{batch_id}")
        batch = found.json()
        if found.status_code == 200 and (until or (lambda b: b["status"] in FINISHED))(batch):
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def entries(served: Served, file_id: str | None) -> list[Any]:
    if file_id is None:
        return []
    found = served.get(f"/v1/files/{file_id}/content")
    assert found.status_code == 200
    assert not found.content or found.content.endswith(b"\n")
    return [json.loads(one) for one in found.text.splitlines()]


def answers(served: Served, batch: Any) -> dict[str, str]:
    """Custom id -> text, in the order of the file."""
    return {
        entry["custom_id"]: entry["response"]["body"]["choices"][0]["message"]["content"]
        for entry in entries(served, batch["output_file_id"])
    }


def no_work_is_left(served: Served) -> bool:
    """Soon: a batch is said to be over before its work is removed."""
    assert served.service.state is not None
    folder = served.service.state.location.folder / "batches"
    end_s = time.monotonic() + 10
    while (left := list(folder.iterdir())) and time.monotonic() < end_s:
        time.sleep(0.02)
    return not left


def slow() -> FakeModel:
    return FakeModel(answer=echo, token_delay_s=0.01)


def some_done(batch: Any) -> bool:
    return bool(batch["request_counts"]["completed"] > 0)
