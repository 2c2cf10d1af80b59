"""Who may ask: API keys, and the Host header on loopback."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from stoker.server.errors import Problem, Refusal
from stoker.server.http import Scope, header, set_owner, set_tenant

# Without a key: whether the server is alive, what it can do, and the page, which asks for the key itself.
_OPEN_PATHS = frozenset({"/", "/health", "/ping", "/openapi.json"})
_OPEN_FOLDER = "/page/"


class Keys:
    """Checks `Authorization: Bearer KEY` or `x-api-key: KEY`, in a time that does not depend on the key."""

    def __init__(self, keys: Sequence[str]) -> None:
        # Digests are of one length, which is what makes the comparison's time constant.
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def check(self, scope: Scope) -> None:
        """Raise `Refusal` (401) without a known key; otherwise note whose it is."""
        path = scope["path"]
        if not self._digests or path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER):
            return
        given = _given_key(scope)
        if given is None:
            raise _unauthorized("no API key was given: Authorization: Bearer KEY, or x-api-key: KEY")
        digest = _digest(given)
        found = -1
        for number, known in enumerate(self._digests):  # all of them, so that its place cannot be timed
            if hmac.compare_digest(digest, known):
                found = number
        if found < 0:
            raise _unauthorized("the API key is not one of this server's")
        set_owner(scope, _owner(given))
        if len(self._digests) > 1:
            set_tenant(scope, f"key-{found + 1}")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _owner(key: bytes) -> str:
    # Stored beside what the key has made. Not the digest that `check` compares: who reads the one must not
    # learn the other.
    return hashlib.sha256(b"stoker owner\0" + key).hexdigest()[:32]


def _given_key(scope: Scope) -> bytes | None:
    authorization = header(scope, b"authorization")
    if authorization is not None:
        kind, _, key = authorization.partition(b" ")
        if kind.lower() == b"bearer" and key.strip():
            return key.strip()
    return header(scope, b"x-api-key")


def _unauthorized(message: str) -> Refusal:
    return Refusal(
        Problem(
            401,
            message,
            type="authentication_error",
            code="invalid_api_key",
            headers=((b"www-authenticate", b"Bearer"),),
        )
    )


class Hosts:
    """Checks the Host header. A web page whose own name leads to this machine still sends that name."""

    def __init__(self, allowed: Sequence[str] | None) -> None:
        self._allowed = None if allowed is None else frozenset(name.lower() for name in allowed)

    def check(self, scope: Scope) -> None:
        """Raise `Refusal` (403) for a name that is not allowed."""
        if self._allowed is None:
            return
        given = (header(scope, b"host") or b"").decode("latin-1").lower()
        name = _without_port(given)
        if name not in self._allowed:
            raise Refusal(
                Problem(
                    403,
                    f"the Host header is {given!r:.200}; allowed: {', '.join(sorted(self._allowed))} "
                    "(--allow-host adds to them)",
                    type="permission_error",
                    code="host_not_allowed",
                )
            )


def _without_port(host: str) -> str:
    if host.startswith("["):  # [::1]:8000
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
