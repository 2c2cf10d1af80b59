"""Who may ask: keys, tenants, Host headers, other origins; where a server may listen; when it is healthy."""

from __future__ import annotations

import socket

import httpx
import pytest
from tests.fake_host import FakeHost, FakeModel
from tests.served import serve

from stoker.api.errors import RequestError, UnavailableError
from stoker.server import ServerOptions, check_exposure, is_loopback, loopback_names, open_socket, url_of


def test_without_a_key_only_what_is_open_answers() -> None:
    with serve(FakeHost(), ServerOptions(api_keys=("k1",))) as served:
        for path in ("/health", "/ping", "/openapi.json", "/", "/page/page.js"):
            assert served.get(path).status_code == 200, path
        for path in ("/v1/models", "/version", "/metrics", "/stats", "/page", "//health", "/nope"):
            response = served.get(path)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert served.chat().status_code == 401
        assert served.host.model.requests == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer k2"}, 200),
        ({"authorization": "bearer  k2"}, 200),
        ({"x-api-key": "k2"}, 200),
        ({"authorization": "Bearer k3"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Basic k2"}, 401),
        ({"authorization": "k2"}, 401),
        ({"x-api-key": "k"}, 401),
        ({"x-api-key": ""}, 401),
    ],
)
def test_a_key_in_either_header(headers: dict[str, str], status: int) -> None:
    with serve(FakeHost(), ServerOptions(api_keys=("k1", "k2"))) as served:
        assert served.get("/v1/models", **headers).status_code == status


def test_each_of_several_keys_is_a_tenant() -> None:
    with serve(FakeHost(), ServerOptions(api_keys=("k1", "k2"))) as served:
        served.post("/v1/completions", {"prompt": "a"}, **{"x-api-key": "k1"})
        served.post("/v1/completions", {"prompt": "a", "user": "ann"}, **{"x-api-key": "k2"})
        assert [request.tenant for request in served.host.model.requests] == ["key-1", "key-2/ann"]


def test_names_of_other_hosts_are_refused_on_loopback() -> None:
    options = ServerOptions(allowed_hosts=loopback_names("127.0.0.1", ("stoker.local",)))
    with serve(FakeHost(), options) as served:
        for name in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST", "stoker.local"):
            assert served.get("/health", host=name).status_code == 200, name
        for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "[::2]", ""):
            response = served.get("/health", host=name)
            assert response.status_code == 403, name
            assert response.json()["error"]["code"] == "host_not_allowed"


def test_other_origins_only_if_allowed() -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with serve(FakeHost()) as served:
        response = httpx.options(served.url + "/v1/completions", headers=preflight)
        assert response.status_code == 405
        assert "access-control-allow-origin" not in response.headers
    with serve(FakeHost(), ServerOptions(allowed_origins=("https://a.example",), api_keys=("k",))) as served:
        response = httpx.options(served.url + "/v1/completions", headers=preflight)
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        asked = served.post("/v1/completions", {"prompt": "a"}, origin="https://a.example")
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (401, "https://a.example")
        other = httpx.options(
            served.url + "/v1/completions", headers=preflight | {"origin": "https://b.example"}
        )
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, has_keys=False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "127.0.0.1.evil.example", ""]
)
def test_wider_needs_a_key(host: str) -> None:
    with pytest.raises(RequestError, match="no API key"):
        check_exposure(host, has_keys=False)
    check_exposure(host, has_keys=True)


def test_sockets_and_urls() -> None:
    with open_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener, "127.0.0.1") == f"http://127.0.0.1:{port}"
        assert url_of(listener, "0.0.0.0") == f"http://127.0.0.1:{port}"
        assert url_of(listener, "::1") == f"http://[::1]:{port}"
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}: Address already in use"):
            open_socket("127.0.0.1", port)
    with pytest.raises(RequestError, match="no such host"):
        open_socket("no such host", 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_loopback() -> None:
    try:
        listener = open_socket("::1", 0)
    except UnavailableError as error:
        pytest.skip(str(error))
    with listener:
        assert listener.getsockname()[:1] == ("::1",)
        assert listener.getsockname()[1] > 0


class _Unloaded(FakeHost):
    def loaded(self) -> tuple[FakeModel, ...]:
        """None is, now."""
        return ()


def test_health_before_the_first_load_and_after_an_idle_one_was_unloaded() -> None:
    with serve(_Unloaded()) as served:
        assert served.get("/health").status_code == 503
        served.service.warm = True
        assert served.get("/health").status_code == 200
        served.service.draining = True
        assert served.get("/health").status_code == 503
        refused = served.complete()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
