"""The socket the server listens on, and who may be let near it."""

from __future__ import annotations

import ipaddress
import resource
import socket

from stoker.api.errors import RequestError, UnavailableError

_BACKLOG = 2048  # connections that wait to be accepted; the kernel cuts it to its own limit
_SPARE_FILES = 256  # for models, sockets to the engines, logs


def is_loopback(host: str) -> bool:
    """True for a name or address that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, *, has_keys: bool) -> None:
    """Raise `RequestError` if others could reach the server, and no API key keeps them out."""
    if not is_loopback(host) and not has_keys:
        raise RequestError(
            f"host is {host}, which other machines may reach, and there is no API key; allowed without "
            "one: 127.0.0.1, ::1, localhost",
            hint="set STOKER_API_KEY, or --api-key-file FILE",
        )


def loopback_names(host: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What a Host header may say to a server on loopback."""
    return tuple(dict.fromkeys(("localhost", "127.0.0.1", "[::1]", _in_url(host), *more)))


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `UnavailableError`, `RequestError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise RequestError(
            f"host is {host!r}: {error}; allowed: an address of this machine, or a name of one"
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"cannot listen on {_in_url(host)}:{port}: {error.strerror}",
            hint="another program has the port: --port takes another one, 0 any free one",
        ) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, host: str) -> str:
    """Where a browser finds the server."""
    shown = host if host not in ("0.0.0.0", "::", "[::]") else "127.0.0.1"
    return f"http://{_in_url(shown)}:{listener.getsockname()[1]}"


def most_connections() -> int:
    """How many connections the process may hold: its limit of open files, raised as far as it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    return max(limit - _SPARE_FILES, limit // 2)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
