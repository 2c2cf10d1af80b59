"""Answers of chats that are kept: stored whole and streamed, listed, changed, deleted; each key's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fake_host import FakeHost, FakeModel
from tests.served import Served, serve

from stoker.server import ServerOptions
from stoker.server.stored_chats import schemas
from stoker.state import StateLocation, StateSource

PATH = "/v1/chat/completions"
MESSAGES = [
    {"role": "system", "content": "Rules."},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
]


def _source(folder: Path) -> StateSource:
    return StateSource(StateLocation(folder / "files", sqlite_file=folder / "state.db"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(FakeHost(FakeModel(), FakeModel("other")), state=_source(tmp_path)) as running:
        yield running


def _stored(served: Served, **fields: Any) -> Any:
    response = served.post(PATH, {"messages": MESSAGES, "store": True, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def _ids(served: Served, query: str = "") -> list[str]:
    response = served.get(f"{PATH}?{query}")
    assert response.status_code == 200, response.text
    schemas.CompletionList.model_validate(response.json(), strict=True)
    return [answer["id"] for answer in response.json()["data"]]


def test_what_is_kept_is_what_was_answered(served: Served) -> None:
    answer = _stored(served, metadata={"k": "v"})
    assert served.get(f"{PATH}/{answer['id']}").json() == {**answer, "metadata": {"k": "v"}}
    plain = served.post(PATH, {"messages": MESSAGES}).json()
    assert served.get(f"{PATH}/{plain['id']}").status_code == 404
    assert _ids(served) == [answer["id"]]


def test_a_streamed_answer_is_kept_whole(served: Served) -> None:
    whole = _stored(served, seed=3)
    response = served.post(PATH, {"messages": MESSAGES, "store": True, "stream": True, "seed": 3})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    kept = served.get(f"{PATH}/{chunks[0]['id']}").json()
    assert kept["choices"] == whole["choices"]
    assert kept["usage"] == whole["usage"]


def test_ids_are_not_what_a_client_says(served: Served) -> None:
    headers = {"x-request-id": "mine"}
    ids = {served.post(PATH, {"messages": MESSAGES, "store": True}, **headers).json()["id"] for _ in range(2)}
    assert len(ids) == 2
    assert "chatcmpl-mine" not in ids


def test_lists(served: Served) -> None:
    made = [_stored(served, metadata={"n": str(i % 2), "all": "é &="})["id"] for i in range(5)]
    other = _stored(served, model="other")["id"]
    assert _ids(served) == [*made, other]
    assert _ids(served, "order=desc&limit=2") == [other, made[4]]
    assert _ids(served, f"after={made[3]}&limit=1") == [made[4]]
    assert _ids(served, "model=other") == [other]
    assert _ids(served, "metadata%5Bn%5D=1") == [made[1], made[3]]
    assert _ids(served, "metadata[n]=0&metadata[all]=%C3%A9%20%26%3D&order=desc") == [
        made[4],
        made[2],
        made[0],
    ]
    assert _ids(served, "metadata[n]=7") == []
    page = served.get(f"{PATH}?limit=2").json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, made[0], made[1])
    for query in ("limit=0", "limit=1000", "order=up", "after=nobody", "x=1", "limit=1&limit=2"):
        assert served.get(f"{PATH}?{query}").status_code == 400, query
    assert served.get(f"{PATH}?metadata[n]=1&metadata[n]=2").status_code == 400


def test_what_one_of_the_databases_cannot_keep_is_refused_before_the_answer(served: Served) -> None:
    for metadata in ({"a": "b\0"}, {"a\0": "b"}):
        response = served.post(PATH, {"messages": MESSAGES, "store": True, "metadata": metadata})
        assert response.status_code == 400
        assert "metadata" in response.json()["error"]["param"]
    answer = _stored(served, metadata={"a\n": "\u20ac\n"})
    assert served.post(f"{PATH}/{answer['id']}", {"metadata": {"a": "\0"}}).status_code == 400
    assert served.get(f"{PATH}/{answer['id']}").json()["metadata"] == {"a\n": "\u20ac\n"}


def test_messages(served: Served) -> None:
    answer = _stored(served)
    path = f"{PATH}/{answer['id']}/messages"
    listed = served.get(path).json()
    schemas.CompletionList.model_validate(listed, strict=True)
    assert [(m["role"], m["content"], m["content_parts"]) for m in listed["data"]] == [
        ("system", "Rules.", None),
        ("user", None, MESSAGES[1]["content"]),
    ]
    first = served.get(f"{path}?limit=1").json()
    assert first["has_more"]
    assert served.get(f"{path}?after={first['last_id']}").json()["data"] == listed["data"][1:]
    assert served.get(f"{path}?order=desc").json()["data"] == listed["data"][::-1]
    assert served.get(f"{path}?after=nobody").status_code == 400


def test_changing_and_deleting(served: Served) -> None:
    answer = _stored(served, metadata={"a": "1"})
    path = f"{PATH}/{answer['id']}"
    changed = served.post(path, {"metadata": {"b": "2"}}).json()
    assert changed["metadata"] == {"b": "2"}
    assert served.get(path).json() == changed
    assert served.post(path, {"metadata": None}).json()["metadata"] == {}
    assert served.post(path, {"metadata": {"b": 2}}).status_code == 400
    assert served.post(path, {"model": "x"}).status_code == 400
    deleted = httpx.delete(served.url + path)
    assert deleted.json() == {"object": "chat.completion.deleted", "id": answer["id"], "deleted": True}
    assert served.get(path).status_code == 404
    assert httpx.delete(served.url + path).status_code == 404
    assert served.post(path, {"metadata": {}}).status_code == 404
    assert served.get(f"{path}/messages").status_code == 404


def test_each_key_sees_its_own(tmp_path: Path) -> None:
    ann, bob = {"x-api-key": "k1"}, {"x-api-key": "k2"}
    with serve(FakeHost(), ServerOptions(api_keys=("k1", "k2")), state=_source(tmp_path)) as served:
        answer = served.post(PATH, {"messages": MESSAGES, "store": True}, **ann).json()
        path = f"{PATH}/{answer['id']}"
        assert served.get(path, **ann).status_code == 200
        assert served.get(PATH, **bob).json()["data"] == []
        assert served.get(f"{PATH}?after={answer['id']}", **bob).status_code == 400
        for response in (
            served.get(path, **bob),
            served.get(f"{path}/messages", **bob),
            served.post(path, {"metadata": {"x": "y"}}, **bob),
            httpx.delete(served.url + path, headers=bob),
        ):
            assert response.status_code == 404
        assert served.get(path, **ann).json()["metadata"] == {}


def test_a_database_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    model = FakeModel(token_delay_s=0.01)
    file, elsewhere = tmp_path / "state.db", tmp_path / "elsewhere"
    with serve(FakeHost(model), state=_source(tmp_path)) as served:
        first = _stored(served, max_tokens=1)
        body = {"messages": MESSAGES, "store": True, "stream": True}
        with httpx.stream("POST", served.url + PATH, json=body, timeout=20) as response:
            pieces = response.iter_raw()
            text = next(pieces)
            file.rename(elsewhere)
            text += b"".join(pieces)
        assert text.endswith(b"data: [DONE]\n\n")
        answer_id = json.loads(text.split(b"\n\n")[0].removeprefix(b"data: "))["id"]
        refused = served.post(PATH, {"messages": MESSAGES, "store": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert served.get(f"{PATH}/{first['id']}").status_code == 503
        assert served.post(PATH, {"messages": MESSAGES}).status_code == 200
        assert served.get(f"{PATH}/{answer_id}").status_code == 200
        elsewhere.rename(file)
    with serve(FakeHost(), state=_source(tmp_path)) as served:
        assert _ids(served) == [first["id"], answer_id]
