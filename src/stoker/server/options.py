"""What a server is told when it is made."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MAX_FILE_BYTES = 512 << 20  # OpenAI's
DEFAULT_MAX_STORED_BYTES = 16 << 30
DEFAULT_MAX_BODY_BYTES = 32 << 20  # a million tokens as JSON of ids; a text of that size fits no context


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits and access. Who may listen where is decided before, in `stoker.server.listen`."""

    api_keys: tuple[str, ...] = ()  # none: everybody who can connect may ask
    allowed_origins: tuple[str, ...] = ()  # of web pages that may read answers; "*": all
    # Names that the Host header may have; none: any. Set on loopback, where a web page could otherwise reach
    # the server under a name of its own that it lets point here (DNS rebinding).
    allowed_hosts: tuple[str, ...] | None = None
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    max_bodies_bytes: int = 4 * DEFAULT_MAX_BODY_BYTES  # of all requests that are being read, together
    max_open_requests: int = 8192  # beyond the engines' own queues; each is a few kilobytes here
    header_timeout_s: float = 10.0  # from a request's first byte, or the connection, to the end of its header
    body_timeout_s: float = 60.0  # from its first byte to its last
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES  # of one upload
    max_stored_bytes: int = DEFAULT_MAX_STORED_BYTES  # of all files; beyond it, uploads are refused
    upload_timeout_s: float = 3600.0  # of a whole upload
    keep_alive_timeout_s: int = 75  # between two requests; above the 60 s that common proxies keep theirs
    drain_s: float = 30.0  # how long open requests may go on after a signal to stop
