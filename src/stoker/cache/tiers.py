"""What the prefix cache asks of a slower store for blocks, and of whoever keeps their bytes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Payload = npt.NDArray[np.uint8]  # [block_bytes] one block's keys and values, of every layer


class BlockStore(Protocol):
    """Holds the blocks' bytes; an interpreter is one."""

    def read_block(self, block: int) -> Payload:
        """[block_bytes] a copy of one block's bytes."""
        ...

    def write_block(self, block: int, payload: Payload) -> None:
        """Put such bytes into a block. `EngineError` if their number is wrong."""
        ...


class BlockTier(Protocol):
    """Keeps blocks by the digest of their prefix. Never raises: what fails is counted, and missing."""

    def has(self, digest: bytes) -> bool:
        """Whether `get` is likely to find it; reads nothing."""
        ...

    def put(self, digest: bytes, payload: Payload) -> bool:
        """Keep a block; false if the tier cannot."""
        ...

    def touch(self, digest: bytes) -> None:
        """Told of a use that needed nothing of the tier: what is in use elsewhere is kept here too."""
        ...

    def get(self, digest: bytes) -> Payload | None:
        """[block_bytes] what was put, verified, or none. Valid until the next `put`."""
        ...
