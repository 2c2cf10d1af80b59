"""What waits for the database: written in the end, unless it was dropped."""

from __future__ import annotations

import asyncio
from typing import Any

from stoker.api.errors import UnavailableError
from stoker.server.unwritten import Unwritten


def test_what_is_dropped_while_others_are_written_is_not_written() -> None:
    written: list[str] = []
    is_away = True

    async def run() -> None:
        unwritten = Unwritten()

        def writer(name: str) -> Any:
            async def write() -> None:
                if is_away:
                    raise UnavailableError("away")
                if name == "a":
                    unwritten.drop("b")
                    await unwritten.write("c", "newer", writer("newer"))
                written.append(name)

            return write

        for name in ("a", "b", "c"):
            await unwritten.write(name, name, writer(name))
        nonlocal is_away
        is_away = False
        await unwritten.close()
        assert len(unwritten) == 0

    asyncio.run(run())
    assert written == ["newer", "a", "c"]
