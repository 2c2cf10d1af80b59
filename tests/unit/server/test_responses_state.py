"""Responses that are kept: continued, in the background, cancelled, deleted; a database that leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fake_host import TOOL_TEMPLATE, FakeHost, FakeModel
from tests.response_traces import check_trace, read_stream
from tests.served import Served, serve

from stoker.api.chat import Message
from stoker.api.errors import EngineError, QueueFullError
from stoker.api.request import Chat
from stoker.server import ServerOptions
from stoker.state import StateLocation, StateSource

CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}
KEYS = ServerOptions(api_keys=("k1", "k2"))
ANN = {"authorization": "Bearer k1"}
BOB = {"authorization": "Bearer k2"}


def _source(folder: Path) -> StateSource:
    return StateSource(StateLocation(folder / "files", sqlite_file=folder / "state.db"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(FakeHost(), state=_source(tmp_path)) as running:
        yield running


def _ask(served: Served, text: Any = "hi", **fields: Any) -> Any:
    response = served.post("/v1/responses", {"input": text, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def _get(served: Served, response_id: str, path: str = "", **headers: str) -> httpx.Response:
    return served.get(f"/v1/responses/{response_id}{path}", **headers)


def _cancel(served: Served, response_id: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/responses/{response_id}/cancel", headers=headers, timeout=20)


def _delete(served: Served, response_id: str, **headers: str) -> httpx.Response:
    return httpx.delete(f"{served.url}/v1/responses/{response_id}", headers=headers, timeout=20)


def _until(true: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
    return found


def _ended(served: Served, response_id: str) -> Any:
    def look() -> Any:
        response = _get(served, response_id).json()
        return response if response["status"] not in ("queued", "in_progress") else None

    return _until(look)


# --- kept and continued ----------------------------------------------------------------------------


def test_what_is_kept_is_what_was_answered(served: Served) -> None:
    answer = _ask(served, metadata={"a": "b"})
    assert answer["store"] is True
    assert _get(served, answer["id"]).json() == answer
    events = read_stream(served.post("/v1/responses", {"input": "hi", "stream": True}).text)
    final = check_trace(events)
    assert _get(served, final["id"]).json() == final
    cut = _ask(served, max_output_tokens=2)
    assert _get(served, cut["id"]).json()["status"] == "incomplete"


def test_what_shall_not_be_kept_is_not(served: Served) -> None:
    answer = _ask(served, store=False)
    assert answer["store"] is False
    assert _get(served, answer["id"]).status_code == 404
    response = served.post("/v1/responses", {"input": "on", "previous_response_id": answer["id"]})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "previous_response_not_found")


def test_a_conversation_goes_on(served: Served) -> None:
    first = _ask(served, "one", instructions="Old rules.", seed=1)
    second = _ask(served, "two", previous_response_id=first["id"], seed=2)
    third = _ask(served, "three", previous_response_id=second["id"], instructions="New rules.", store=False)
    assert third["previous_response_id"] == second["id"]
    prompt = served.host.model.requests[-1].prompt
    assert isinstance(prompt, Chat)
    assert prompt.messages == (
        Message("system", "New rules."),
        Message("user", "one"),
        Message("assistant", "Grüße, 世界! 🚂 Answer 1."),
        Message("user", "two"),
        Message("assistant", "Grüße, 世界! 🚂 Answer 2."),
        Message("user", "three"),
    )
    counted = served.post("/v1/responses/input_tokens", {"input": "x", "previous_response_id": second["id"]})
    text = "".join(f"<{m.role}>{m.content}" for m in prompt.messages[1:-1]) + "<user>x<assistant>"
    assert counted.json()["input_tokens"] == len(text.encode())


def test_a_tools_result_goes_on_after_its_call(tmp_path: Path) -> None:
    model = FakeModel(chat_template=TOOL_TEMPLATE, answer=lambda request, seed: CALL)
    with serve(FakeHost(model), state=_source(tmp_path)) as served:
        first = _ask(served, tools=[CLOCK])
        [call] = first["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "12:00"}
        _ask(served, [result], tools=[CLOCK], previous_response_id=first["id"])
        [*_, asked, told] = model.requests[-1].prompt.messages
        assert asked.tool_calls[0].id == call["call_id"]
        assert (told.role, told.content, told.name) == ("tool", "12:00", "clock")
        wrong = {**result, "call_id": "call_nobody"}
        response = served.post("/v1/responses", {"input": [wrong], "previous_response_id": first["id"]})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "input[0].call_id")
        # A call that was cut off is not part of the conversation.
        cut = _ask(served, tools=[CLOCK], max_output_tokens=CALL.index("{}") + 1)
        assert cut["output"][-1]["status"] == "incomplete"
        _ask(served, "on", tools=[CLOCK], previous_response_id=cut["id"])
        assert not any(message.tool_calls for message in model.requests[-1].prompt.messages)


def test_items_by_reference(served: Served) -> None:
    first = _ask(served, "one", seed=1)
    listed = _get(served, first["id"], "/input_items").json()["data"]
    references = [{"type": "item_reference", "id": item["id"]} for item in (*listed, *first["output"])]
    second = _ask(served, [*references, {"role": "user", "content": "two"}])
    assert [m.content for m in served.host.model.requests[-1].prompt.messages] == [
        "one",
        "Grüße, 世界! 🚂 Answer 1.",
        "two",
    ]
    items = _get(served, second["id"], "/input_items?order=asc").json()["data"]
    assert [item["type"] for item in items] == ["message"] * 3, "references are kept as what they refer to"


def test_input_items_in_pages(served: Served) -> None:
    answer = _ask(served, [{"role": "user", "content": str(i)} for i in range(5)])
    path = "/input_items?order=asc&limit=2"

    def texts(page: Any) -> list[str]:
        return [item["content"][0]["text"] for item in page["data"]]

    first = _get(served, answer["id"], path).json()
    second = _get(served, answer["id"], f"{path}&after={first['last_id']}").json()
    third = _get(served, answer["id"], f"{path}&after={second['last_id']}").json()
    assert [texts(page) for page in (first, second, third)] == [["0", "1"], ["2", "3"], ["4"]]
    assert [page["has_more"] for page in (first, second, third)] == [True, True, False]
    newest = _get(served, answer["id"], "/input_items").json()
    assert texts(newest) == ["4", "3", "2", "1", "0"]
    for query in ("limit=0", "limit=101", "order=up", "after=nobody", "x=1"):
        assert _get(served, answer["id"], f"/input_items?{query}").status_code == 400, query


def test_deleting(served: Served) -> None:
    first = _ask(served)
    second = _ask(served, previous_response_id=first["id"])
    assert _delete(served, first["id"]).json() == {"id": first["id"], "object": "response", "deleted": True}
    assert _get(served, first["id"]).status_code == 404
    assert _delete(served, first["id"]).status_code == 404
    assert _get(served, second["id"]).status_code == 200
    response = served.post("/v1/responses", {"input": "x", "previous_response_id": second["id"]})
    assert response.status_code == 400
    assert f"{first['id']}, which was deleted" in response.json()["error"]["message"]


def test_each_key_sees_its_own(tmp_path: Path) -> None:
    with serve(FakeHost(), KEYS, state=_source(tmp_path)) as served:
        body = {"input": "secret", "background": True}
        for path in ("background", "plain"):
            mine = served.post("/v1/responses", {**body, "background": path == "background"}, **ANN).json()
            _until(lambda mine=mine: _get(served, mine["id"], **ANN).json()["status"] == "completed")
            item = mine["id"].replace("resp_", "msg_") + "000000"
            for response in (
                _get(served, mine["id"], **BOB),
                _get(served, mine["id"], "?stream=true", **BOB),
                _get(served, mine["id"], "/input_items", **BOB),
                _cancel(served, mine["id"], **BOB),
                _delete(served, mine["id"], **BOB),
            ):
                assert response.status_code == 404, response.text
            for fields in (
                {"input": "x", "previous_response_id": mine["id"]},
                {"input": [{"type": "item_reference", "id": item}]},
            ):
                assert served.post("/v1/responses", fields, **BOB).status_code == 400
                assert served.post("/v1/responses", fields, **ANN).status_code == 200
    # Who is who is told by the key, not by its place among the others.
    with serve(FakeHost(), ServerOptions(api_keys=("k1",)), state=_source(tmp_path)) as served:
        assert _get(served, mine["id"], **ANN).status_code == 200


# --- in the background -----------------------------------------------------------------------------


def test_in_the_background(served: Served) -> None:
    served.host.model.token_delay_s = 0.002
    begun = _ask(served, background=True)
    assert (begun["status"], begun["output"], begun["background"]) == ("queued", [], True)
    followed = _get(served, begun["id"], "?stream=true")
    final = check_trace(read_stream(followed.text))
    assert final["status"] == "completed"
    assert _get(served, begun["id"]).json() == final
    again = _get(served, begun["id"], "?stream=true")
    assert again.text == followed.text, "the stream is kept with the response"
    for number in (0, 5, len(read_stream(followed.text)) - 2):
        rest = _get(served, begun["id"], f"?stream=true&starting_after={number}")
        check_trace(read_stream(rest.text), first=number + 1)
    assert _get(served, begun["id"], "?stream=true&starting_after=9999").text == ""
    assert _get(served, begun["id"], "?starting_after=1").status_code == 400
    assert _cancel(served, begun["id"]).json() == final, "what has ended stays as it is"
    plain = _ask(served)
    assert _get(served, plain["id"], "?stream=true").status_code == 400
    assert _cancel(served, plain["id"]).json()["error"]["code"] == "not_in_background"


def test_a_reader_may_leave_a_background_stream_and_come_back(served: Served) -> None:
    served.host.model.token_delay_s = 0.003
    body = {"input": "hi", "background": True, "stream": True}
    seen = b""
    with httpx.stream("POST", served.url + "/v1/responses", json=body, timeout=20) as response:
        for piece in response.iter_raw():
            seen += piece
            if seen.count(b"output_text.delta\n") >= 3:
                break
    whole = seen[: seen.rindex(b"\n\n") + 2]
    events = read_stream(whole.decode())
    response_id, number = events[0]["response"]["id"], events[-1]["sequence_number"]
    rest = read_stream(_get(served, response_id, f"?stream=true&starting_after={number}").text)
    assert check_trace(events + rest)["status"] == "completed"


def test_while_it_is_answered_it_is_seen_as_it_stands(served: Served) -> None:
    served.host.model.token_delay_s = 0.01
    begun = _ask(served, background=True)
    growing = _until(lambda: (r := _get(served, begun["id"]).json()) and r["output"] and r)
    assert growing["status"] == "in_progress"
    response = served.post("/v1/responses", {"input": "x", "previous_response_id": begun["id"]})
    assert response.json()["error"]["code"] == "not_finished"
    assert _ended(served, begun["id"])["status"] == "completed"


def test_cancelling(served: Served) -> None:
    served.host.model.token_delay_s = 0.05
    begun = _ask(served, background=True)
    _until(lambda: _get(served, begun["id"]).json()["output"])
    cancelled = _cancel(served, begun["id"]).json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["output"][0]["status"] == "incomplete"
    assert _get(served, begun["id"]).json() == cancelled
    assert _cancel(served, begun["id"]).json() == cancelled
    assert served.host.model.aborted
    events = read_stream(_get(served, begun["id"], "?stream=true").text)
    assert check_trace(events) == cancelled
    assert events[-1]["type"] == "response.incomplete"


def test_deleting_what_is_worked_on(served: Served) -> None:
    served.host.model.token_delay_s = 0.05
    begun = _ask(served, background=True)
    assert _delete(served, begun["id"]).status_code == 200
    assert _get(served, begun["id"]).status_code == 404
    _until(lambda: served.host.model.open == 0)


def test_a_background_response_that_fails(served: Served) -> None:
    model = served.host.model
    model.error_after = (3, EngineError("gone"))
    failed = _ended(served, _ask(served, background=True)["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    check_trace(read_stream(_get(served, failed["id"], "?stream=true").text))
    response = served.post("/v1/responses", {"input": "x", "previous_response_id": failed["id"]})
    assert "is failed" in response.json()["error"]["message"]


def test_a_background_response_waits_until_there_is_room(served: Served) -> None:
    model = served.host.model
    model.error = QueueFullError("full")
    begun = _ask(served, background=True)
    _until(lambda: model.requests)
    assert _get(served, begun["id"]).json()["status"] == "queued"
    model.error = None
    assert _ended(served, begun["id"])["status"] == "completed"


def test_a_restart_goes_on_with_the_same_answer(tmp_path: Path) -> None:
    slow = FakeModel(token_delay_s=0.02)
    with serve(FakeHost(slow), state=_source(tmp_path)) as served:
        begun = _ask(served, background=True, instructions="Rules.")
        _until(lambda: _get(served, begun["id"]).json()["output"])
        before = read_stream_so_far(served, begun["id"])
    assert slow.aborted
    fast = FakeModel()
    with serve(FakeHost(fast), state=_source(tmp_path)) as served:
        final = _ended(served, begun["id"])
        assert final["status"] == "completed"
        assert (final["created_at"], final["seed"]) == (begun["created_at"], begun["seed"])
        [again] = fast.requests
        assert again.sampling == slow.requests[0].sampling
        assert again.prompt == slow.requests[0].prompt
        events = read_stream(_get(served, begun["id"], "?stream=true").text)
        assert check_trace(events) == final
        assert events[: len(before)] == before, "who has seen some events goes on after them"


def read_stream_so_far(served: Served, response_id: str) -> list[dict[str, Any]]:
    """The first events of a stream that goes on."""
    seen = b""
    url = f"{served.url}/v1/responses/{response_id}?stream=true"
    with httpx.stream("GET", url, timeout=20) as response:
        for piece in response.iter_raw():
            seen += piece
            if b"output_text.delta\n" in seen:
                break
    return read_stream(seen[: seen.rindex(b"\n\n") + 2].decode())


# --- a client that leaves, a database that leaves ---------------------------------------------------


def test_a_client_that_leaves_a_stream_cancels_its_response(served: Served) -> None:
    served.host.model.token_delay_s = 0.02
    body = {"input": "hi", "stream": True}
    with httpx.stream("POST", served.url + "/v1/responses", json=body, timeout=20) as response:
        pieces = response.iter_raw()
        text = next(pieces).decode()
        response_id = read_stream(text[: text.rindex("\n\n") + 2])[0]["response"]["id"]
        assert _get(served, response_id).json()["status"] == "in_progress"
        assert _delete(served, response_id).status_code == 409
    _until(lambda: served.host.model.aborted)
    found = _until(lambda: (r := _get(served, response_id)).status_code == 200 and r.json())
    assert _ended(served, found["id"])["status"] == "cancelled"
    assert served.host.model.aborted


def test_a_database_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    model = FakeModel(token_delay_s=0.02)
    file = tmp_path / "state.db"
    with serve(FakeHost(model), state=_source(tmp_path)) as served:
        first = _ask(served, "one", max_output_tokens=1)
        begun = _ask(served, background=True)
        elsewhere = tmp_path / "elsewhere"
        with httpx.stream(
            "POST", served.url + "/v1/responses", json={"input": "s", "stream": True}, timeout=20
        ) as response:
            pieces = response.iter_raw()
            text = next(pieces)
            file.rename(elsewhere)  # in the middle of two answers
            text += b"".join(pieces)
        streamed = check_trace(read_stream(text.decode()))
        assert streamed["status"] == "completed", "an answer that is there is given"
        for response in (
            served.post("/v1/responses", {"input": "x"}),
            served.post("/v1/responses", {"input": "x", "background": True}),
            served.post("/v1/responses", {"input": "x", "store": False, "previous_response_id": first["id"]}),
            _get(served, first["id"]),
            _delete(served, first["id"]),
        ):
            assert response.status_code == 503, response.text
            assert response.headers["retry-after"]
        model.token_delay_s = 0
        assert _ask(served, store=False)["status"] == "completed", "what needs no state goes on"
        assert _get(served, streamed["id"]).json() == streamed, "what could not be written is not lost"
        finished = _ended(served, begun["id"])
        assert finished["status"] == "completed"
        elsewhere.rename(file)
        assert _until(lambda: _get(served, first["id"]).status_code == 200)
        _until(lambda: not len(served.service.unwritten))
        assert _get(served, streamed["id"]).json() == streamed
        assert _ask(served, "on", previous_response_id=streamed["id"])["status"] == "completed"
    with serve(FakeHost(), state=_source(tmp_path)) as served:
        assert _get(served, streamed["id"]).json() == streamed
        assert _get(served, begun["id"]).json() == finished
