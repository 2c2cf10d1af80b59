"""Answers in their form: whole and streamed, chats and texts, what comes first and last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.fake_host import DRAWN_SEED, FakeHost, FakeModel
from tests.served import Served, events_of, serve

from stoker.server import schemas


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(FakeHost(FakeModel(cached_tokens=3), FakeModel("base", has_chat_template=False))) as running:
        yield running


def test_a_chat_in_one_piece(served: Served) -> None:
    response = served.chat("hi", seed=5)
    answer = response.json()
    assert response.status_code == 200
    schemas.ChatCompletion.model_validate(answer)
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Grüße, 世界! 🚂 Answer 5.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "seed": 5,
        }
    ]
    tokens = len("Grüße, 世界! 🚂 Answer 5.".encode())
    assert answer["usage"] == {
        "prompt_tokens": 19,
        "completion_tokens": tokens,
        "total_tokens": 19 + tokens,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    assert answer["id"] == "chatcmpl-" + response.headers["x-request-id"]
    assert (answer["model"], answer["object"]) == ("fake", "chat.completion")
    assert answer["system_fingerprint"] == "fp_0123456789abcdef"


def test_a_stream_says_role_text_end_usage_done(served: Served) -> None:
    response = served.chat("hi", seed=5, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events_of(response.text)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]]
    assert "".join(texts) == "Grüße, 世界! 🚂 Answer 5."
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert chunks[-2]["choices"][0]["seed"] == 5
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], "fake", "chat.completion.chunk")
    }


def test_without_include_usage_no_chunk_has_usage(served: Served) -> None:
    assert all("usage" not in chunk for chunk in events_of(served.chat(stream=True).text)[:-1])


def test_usage_so_far_in_each_chunk(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = events_of(served.chat(stream=True, stream_options=options, max_tokens=7).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert (counts, counts[-1]) == (sorted(counts), 7)
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {19}


def test_choices_of_one_request_have_seeds_that_follow(served: Served) -> None:
    answer = served.complete("ab", n=3, seed=7, max_tokens=100).json()
    assert [choice["text"][-3:] for choice in answer["choices"]] == [" 7.", " 8.", " 9."]
    assert [choice["seed"] for choice in answer["choices"]] == [7, 8, 9]
    assert answer["usage"]["prompt_tokens"] == 2  # once, not three times
    *chunks, _ = events_of(served.complete("ab", n=3, seed=7, max_tokens=100, stream=True).text)
    for index, choice in enumerate(answer["choices"]):
        pieces = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [p["finish_reason"] for p in pieces if p["finish_reason"]] == ["stop"]


def test_a_drawn_seed_is_reported(served: Served) -> None:
    assert served.chat().json()["choices"][0]["seed"] == DRAWN_SEED


@pytest.mark.parametrize("prompt", ["ab", [97, 98], ["ab"], [[97, 98]]])
def test_forms_of_a_prompt(served: Served, prompt: object) -> None:
    answer = served.complete(prompt, echo=True, max_tokens=3).json()
    schemas.Completion.model_validate(answer)
    assert [choice["text"] for choice in answer["choices"]] == ["abGr\ufffd"]
    assert answer["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_are_answered_in_their_order(served: Served, stream: bool) -> None:
    response = served.complete(["a", "bcd"], n=2, seed=1, max_tokens=50, echo=True, stream=stream)
    if stream:
        texts = [""] * 4
        for chunk in events_of(response.text)[:-1]:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    else:
        assert response.json()["usage"]["prompt_tokens"] == 4
        texts = [choice["text"] for choice in response.json()["choices"]]
    assert [text[:5] + text[-2:] for text in texts] == ["aGrüß1.", "aGrüß2.", "bcdGr1.", "bcdGr2."]


def test_completions_stop_at_sixteen_tokens_and_chats_do_not(served: Served) -> None:
    assert served.complete().json()["usage"]["completion_tokens"] == 16
    assert served.complete(min_tokens=20).json()["usage"]["completion_tokens"] == 20
    served.chat()
    assert served.host.model.requests[-1].sampling.max_tokens is None


def test_logprobs_of_a_chat(served: Served) -> None:
    whole = served.chat(logprobs=True, top_logprobs=2, max_tokens=4).json()["choices"][0]["logprobs"]
    assert [entry["token"] for entry in whole["content"]] == ["G", "r", "bytes:\\xc3", "bytes:\\xbc"]
    assert whole["content"][0]["bytes"] == [71]
    assert whole["content"][0]["top_logprobs"] == [
        {"token": "G", "logprob": -0.5, "bytes": [71]},
        {"token": "H", "logprob": -1.5, "bytes": [72]},
    ]
    *chunks, _ = events_of(served.chat(logprobs=True, top_logprobs=2, max_tokens=4, stream=True).text)
    streamed = [e for c in chunks if (found := c["choices"][0]["logprobs"]) for e in found["content"]]
    assert streamed == whole["content"]


def test_logprobs_of_a_text(served: Served) -> None:
    whole = served.complete(logprobs=1, max_tokens=3).json()["choices"][0]["logprobs"]
    assert whole == {
        "tokens": ["G", "r", "bytes:\\xc3"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{"G": -0.5}, {"r": -0.5}, {"bytes:\\xc3": -0.5}],
        "text_offset": [0, 1, 2],
    }
    *chunks, _ = events_of(served.complete(logprobs=1, max_tokens=3, stream=True).text)
    offsets = [o for c in chunks if (found := c["choices"][0]["logprobs"]) for o in found["text_offset"]]
    assert offsets == whole["text_offset"]


def test_token_ids_on_demand(served: Served) -> None:
    whole = served.complete("ab", return_token_ids=True, max_tokens=3).json()["choices"][0]
    assert (whole["prompt_token_ids"], whole["token_ids"]) == ([97, 98], [71, 114, 195])
    *chunks, _ = events_of(served.complete("ab", return_token_ids=True, max_tokens=3, stream=True).text)
    pieces = [chunk["choices"][0] for chunk in chunks]
    assert pieces[0]["prompt_token_ids"] == [97, 98]
    assert [i for piece in pieces for i in piece.get("token_ids", [])] == [71, 114, 195]
    chat = served.chat(return_token_ids=True, max_tokens=1).json()
    assert bytes(chat["prompt_token_ids"]) == b"<user>hi<assistant>"
    *chunks, _ = events_of(served.chat(return_token_ids=True, max_tokens=1, stream=True).text)
    assert bytes(chunks[0]["prompt_token_ids"]) == b"<user>hi<assistant>"
    assert "token_ids" not in served.complete().json()["choices"][0]


def test_what_the_engine_is_asked(served: Served) -> None:
    served.chat(
        "hi",
        model="fake",
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        typical_p=0.8,
        stop=["x", "yy"],
        stop_token_ids=[3],
        max_completion_tokens=9,
        min_tokens=2,
        ignore_eos=True,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        logit_bias={"5": -100},
        priority=-3,
        cache_salt="salt",
        user="ann",
        deadline_ms=5000,
        keep_alive="5m",
    )
    request = served.host.model.requests[-1]
    params = request.sampling
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 40, 0.1)
    assert (params.typical_p, params.stop, params.stop_token_ids) == (0.8, ("x", "yy"), (3,))
    assert (params.max_tokens, params.min_tokens, params.ignore_eos) == (9, 2, True)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.1, 0.2, 1.1)
    assert params.logit_bias == {5: -100}
    assert (request.priority, request.cache_salt, request.tenant) == (-3, "salt", "ann")
    assert request.deadline_ms == 5000
    assert served.host.keep_alives[-1] == 300.0
    assert [(m.role, m.content) for m in request.prompt.messages] == [("user", "hi")]


def test_parts_are_lines_and_a_developer_is_the_system(served: Served) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert served.post("/v1/chat/completions", {"messages": messages}).status_code == 200
    prompt = served.host.model.requests[-1].prompt
    assert [(m.role, m.content) for m in prompt.messages] == [("system", "be brief"), ("user", "a\nb")]


def test_an_answers_message_may_be_sent_back_with_its_nulls(served: Served) -> None:
    message = served.chat().json()["choices"][0]["message"] | {"tool_calls": None, "annotations": []}
    messages = [{"role": "user", "content": "a"}, message, {"role": "user", "content": "b"}]
    assert served.post("/v1/chat/completions", {"messages": messages}).status_code == 200


def test_fields_that_ask_for_what_is_done_anyway_are_taken(served: Served) -> None:
    fields = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "store": False,
        "metadata": {},
        "service_tier": "auto",
        "modalities": ["text"],
        "reasoning_effort": None,
    }
    assert served.chat(**fields).status_code == 200
    assert served.complete(best_of=2, n=2, suffix=None).status_code == 200


def test_tokens_and_back(served: Served) -> None:
    answer = served.post("/tokenize", {"prompt": "aé"}).json()
    schemas.Tokens.model_validate(answer)
    assert answer == {"count": 3, "max_model_len": 100_000, "tokens": [97, 195, 169], "token_strs": None}
    messages = [{"role": "user", "content": "x"}]
    for flag, text in ((True, b"<user>x<assistant>"), (False, b"<user>x")):
        tokens = served.post("/tokenize", {"messages": messages, "add_generation_prompt": flag}).json()[
            "tokens"
        ]
        assert bytes(tokens) == text
    strings = served.post("/tokenize", {"prompt": "aé", "return_token_strs": True}).json()["token_strs"]
    assert strings == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert served.post("/detokenize", {"tokens": [97, 195, 169]}).json() == {"prompt": "aé"}
    assert served.post("/detokenize", {"tokens": [999]}).status_code == 400


def test_models_health_version(served: Served) -> None:
    listed = served.get("/v1/models").json()
    schemas.ModelList.model_validate(listed)
    assert [model["id"] for model in listed["data"]] == ["fake", "base"]
    assert served.get("/v1/models/base").json()["id"] == "base"
    assert served.get("/v1/models/nope").status_code == 404
    assert (served.get("/health").status_code, served.get("/ping").status_code) == (200, 200)
    assert set(served.get("/version").json()) == {"version"}
    assert served.get("/metrics").status_code == 404  # without views


def test_unready_models_are_not_healthy(served: Served) -> None:
    for model in served.host.models.values():
        model.ready = False
    try:
        response = served.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "unavailable")
    finally:
        for model in served.host.models.values():
            model.ready = True


def test_the_request_id_is_the_clients_if_it_can_be(served: Served) -> None:
    good = served.post("/v1/completions", {"prompt": "a"}, **{"x-request-id": "job-7.a"})
    assert good.headers["x-request-id"] == "job-7.a"
    assert good.json()["id"] == "cmpl-job-7.a"
    for bad in ("a b", "x" * 129, 'q"'):
        response = served.post("/v1/completions", {"prompt": "a"}, **{"x-request-id": bad})
        assert len(response.headers["x-request-id"]) == 32
    # Two open requests of one id are two requests to the engine.
    ids = [request.request_id for request in served.host.model.requests]
    assert len(set(ids)) == len(ids)


def test_the_page_and_its_files(served: Served) -> None:
    page = served.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert served.get("/", **{"if-none-match": page.headers["etag"]}).status_code == 304
    assert served.get("/page/page.js").headers["content-type"].startswith("text/javascript")
    assert served.get("/page/..%2fapp.py").status_code == 404
    assert served.get("/page/nope.js").status_code == 404
