"""The disk tier: what was put comes back, or nothing does, whatever happened to the file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from stoker.cache.disk import CAPS_IN_FOLDER, PAGE_BYTES, VERSION, DiskTier, open_disk_tier
from stoker.kernels.program import UInt8

BLOCK_BYTES = 5000  # no multiple of a page
SLOTS = 5
CAP_BYTES = 2 * PAGE_BYTES + SLOTS * (2 * PAGE_BYTES + 80)


def key(number: int) -> bytes:
    return sha256(bytes([number])).digest()


def payload(number: int) -> UInt8:
    return np.random.default_rng(number).integers(0, 256, BLOCK_BYTES, dtype=np.uint8)


def opened(folder: Path, identity: bytes = b"model int8", cap_bytes: int = CAP_BYTES) -> DiskTier:
    tier, reason = open_disk_tier(folder, identity=identity, block_bytes=BLOCK_BYTES, cap_bytes=cap_bytes)
    assert tier is not None, reason
    return tier


def filled(folder: Path, count: int = 3) -> Path:
    """A closed file with blocks 0 .. count - 1."""
    tier = opened(folder)
    for number in range(count):
        assert tier.put(key(number), payload(number))
    tier.close()
    return tier.path


def found(tier: DiskTier, numbers: range = range(SLOTS)) -> list[int]:
    """Which blocks come back; each of them must be what was put."""
    there = []
    for number in numbers:
        read = tier.get(key(number))
        if read is not None:
            np.testing.assert_array_equal(read, payload(number))
            there.append(number)
    return there


def test_blocks_survive_a_restart(tmp_path: Path) -> None:
    path = filled(tmp_path)
    tier = opened(tmp_path)
    assert (len(tier), tier.slots, tier.path) == (3, SLOTS, path)
    assert [tier.has(key(number)) for number in range(4)] == [True, True, True, False]
    assert found(tier) == [0, 1, 2]
    assert (tier.rejected, tier.write_failures) == (0, 0)
    assert tier.size_bytes == path.stat().st_size <= CAP_BYTES
    assert path.stat().st_mode & 0o077 == 0  # prompts can be guessed from keys and values
    tier.flush()
    tier.close()


def test_the_least_recently_used_gives_way_also_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path, SLOTS)
    tier = opened(tmp_path)
    assert found(tier, range(2)) == [0, 1]
    tier.close()
    tier = opened(tmp_path)
    assert tier.put(key(10), payload(10))
    assert tier.put(key(3), payload(3))  # has it, and now it is the latest
    assert tier.put(key(11), payload(11))
    assert found(tier) == [0, 1, 3]
    assert found(tier, range(10, 12)) == [10, 11]
    tier.close()
    assert found(opened(tmp_path)) == [0, 1, 3]


def test_what_is_used_in_memory_is_kept_also_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path, SLOTS)
    tier = opened(tmp_path)
    for number in (1, 0, 9):  # nothing is known of the last
        tier.touch(key(number))
    assert len(tier) == SLOTS
    assert tier.put(key(10), payload(10))
    assert not tier.has(key(2))
    tier.close()
    tier = opened(tmp_path)
    for number in (11, 12):
        assert tier.put(key(number), payload(number))
    assert found(tier) == [0, 1]


@pytest.mark.parametrize("place", ["payload", "checksum", "digest"])
def test_a_corrupt_byte_is_found_and_counted(tmp_path: Path, place: str) -> None:
    path = filled(tmp_path)
    data = bytearray(path.read_bytes())
    at = {
        "payload": data.index(payload(1).tobytes()) + BLOCK_BYTES - 1,
        "checksum": data.index(key(1)) + 40,
        "digest": data.index(key(1)) + 31,
    }[place]
    data[at] ^= 1
    path.write_bytes(data)
    tier = opened(tmp_path)
    assert found(tier) == [0, 2]
    assert tier.rejected == (0 if place == "digest" else 1)  # a prefix that nobody has is never asked for
    assert tier.put(key(1), payload(1))
    assert found(tier) == [0, 1, 2]


def test_a_slot_under_another_ones_name_is_not_served(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = bytearray(path.read_bytes())
    one, other = data.index(key(0)), data.index(key(1))
    data[one : one + 32], data[other : other + 32] = data[other : other + 32], data[one : one + 32]
    path.write_bytes(data)
    tier = opened(tmp_path)
    assert found(tier) == [2]
    assert tier.rejected == 2


def test_one_prefix_in_two_slots_counts_once(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = bytearray(path.read_bytes())
    one, other = data.index(key(0)), data.index(key(1))
    data[one : one + 32] = data[other : other + 32]
    path.write_bytes(data)
    tier = opened(tmp_path)
    assert (len(tier), tier.rejected) == (2, 1)
    assert found(tier) == [1, 2]
    assert all(tier.put(key(number), payload(number)) for number in range(3, 6))
    assert len(tier) == SLOTS


@pytest.mark.parametrize("kept_bytes", [0, 10, PAGE_BYTES + 100, -1])
def test_a_truncated_file_is_replaced(tmp_path: Path, kept_bytes: int) -> None:
    path = filled(tmp_path)
    os.truncate(path, kept_bytes % path.stat().st_size)
    tier = opened(tmp_path)
    assert (len(tier), tier.rejected) == (0, 1)
    assert tier.put(key(0), payload(0))
    assert found(tier) == [0]


def test_a_file_that_shrinks_while_it_is_open_does_no_harm(tmp_path: Path) -> None:
    filled(tmp_path)
    tier = opened(tmp_path)
    os.truncate(tier.path, PAGE_BYTES)
    assert found(tier) == []
    assert tier.rejected == 3


def _with_version(header: bytes) -> bytes:
    return header[:8] + (VERSION + 1).to_bytes(4, "little") + header[12:]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: b"NOTABLOK" + data[8:], id="another magic"),
        pytest.param(_with_version, id="a later version"),
        pytest.param(lambda data: data[:16] + (1).to_bytes(8, "little") + data[24:], id="other blocks"),
        pytest.param(lambda data: data[:32] + bytes(32) + data[64:], id="another identity"),
        pytest.param(lambda data: b"GIF89a" * 1000, id="something else"),
    ],
)
def test_a_foreign_file_is_replaced(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    path = filled(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    tier = opened(tmp_path)
    assert (len(tier), tier.rejected) == (0, 1)
    assert found(tier) == []


def test_another_model_has_another_file(tmp_path: Path) -> None:
    filled(tmp_path)
    tier = opened(tmp_path, b"model f16")
    assert found(tier) == []
    assert tier.rejected == 0


def test_another_cap_begins_anew(tmp_path: Path) -> None:
    filled(tmp_path)
    tier = opened(tmp_path, cap_bytes=2 * CAP_BYTES)
    assert (len(tier), tier.rejected) == (0, 0)
    assert tier.slots > SLOTS


def test_files_of_other_models_go_when_the_folder_holds_too_much(tmp_path: Path) -> None:
    names = [bytes([number]) for number in range(CAPS_IN_FOLDER + 1)]
    for age, identity in enumerate(names):
        tier = opened(tmp_path, identity)
        for number in range(SLOTS):
            assert tier.put(key(number), payload(number))
        tier.close()
        os.utime(tier.path, (1000 + age, 1000 + age))
    oldest, newest = opened(tmp_path, names[0]), opened(tmp_path, names[-1])
    left = set(tmp_path.glob("*.blocks"))
    assert {oldest.path, newest.path} <= left  # one is in use, the other its own
    assert 2 <= len(left) <= CAPS_IN_FOLDER
    assert sum(path.stat().st_blocks * 512 for path in left) <= CAPS_IN_FOLDER * CAP_BYTES
    oldest.close()
    newest.close()
    assert len(opened(tmp_path, names[1])) == 0  # the oldest that nobody used


def test_a_sector_that_cannot_be_read_is_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the map alone it would end the process."""
    path = filled(tmp_path)
    bad = path.read_bytes().index(payload(1).tobytes())
    really_read = os.pread

    def read(file: int, size: int, at: int) -> bytes:
        if at <= bad < at + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really_read(file, size, at)

    tier = opened(tmp_path)
    monkeypatch.setattr(os, "pread", read)
    assert found(tier) == [0, 2]
    assert tier.rejected == 1


def test_a_full_disk_stops_writing_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    tier = opened(tmp_path)
    really_write, left = os.pwrite, [PAGE_BYTES]

    def write(file: int, data: memoryview, at: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = really_write(file, data[: left[0]], at)
        left[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", write)
    assert not tier.put(key(4), payload(4))  # a part of it was written
    assert (tier.write_failures, tier.stopped) == (1, True)
    assert found(tier) == [0, 1, 2]
    assert not tier.put(key(5), payload(5))
    assert tier.write_failures == 1
    tier.flush()
    assert [record.getMessage() for record in caplog.records] == [
        f"prefixes are no longer written to disk: {tier.path}: No space left on device"
    ]
    monkeypatch.undo()
    assert not tier.put(key(5), payload(5))
    tier.close()
    assert found(opened(tmp_path)) == [0, 1, 2]


def test_a_second_process_works_without(tmp_path: Path) -> None:
    """It is told why; the lock goes with the process that has it, however that ends."""
    tier = opened(tmp_path)
    script = (
        "import os, sys, pathlib, signal\n"
        "from stoker.cache.disk import open_disk_tier\n"
        f"tier, reason = open_disk_tier(pathlib.Path(sys.argv[1]), identity=b'model int8',"
        f" block_bytes={BLOCK_BYTES}, cap_bytes={CAP_BYTES})\n"
        "print(reason, flush=True)\n"
        "import numpy as np\n"
        f"tier and tier.put(bytes.fromhex(sys.argv[2]), np.full({BLOCK_BYTES}, 7, np.uint8))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), key(9).hex()], capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        return done.stdout.strip()

    assert run() == f"another process keeps this model's blocks in {tmp_path}"
    tier.close()
    assert run() == "None"
    read = opened(tmp_path).get(key(9))
    assert read is not None
    assert (read == 7).all()


@pytest.mark.parametrize("where", ["a file", "no room"])
def test_where_nothing_can_be_kept_the_reason_is_said(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "folder"
    cap_bytes = CAP_BYTES
    if where == "a file":
        folder.write_bytes(b"")
    else:
        cap_bytes = PAGE_BYTES
    tier, reason = open_disk_tier(folder, identity=b"", block_bytes=BLOCK_BYTES, cap_bytes=cap_bytes)
    assert tier is None
    assert reason is not None
    assert ("File exists" if where == "a file" else "allowed: at least 16464, for one block") in reason


def test_a_disk_that_refuses_the_file_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "truncate", refuse)
    tier, reason = open_disk_tier(tmp_path, identity=b"", block_bytes=BLOCK_BYTES, cap_bytes=CAP_BYTES)
    assert tier is None
    assert reason is not None
    assert "No space left" in reason
    monkeypatch.undo()
    opened(tmp_path, b"").close()  # its lock is free again


def test_a_payload_of_another_size_is_not_kept(tmp_path: Path) -> None:
    tier = opened(tmp_path)
    assert not tier.put(key(0), payload(0)[:-1])
    assert len(tier) == 0


def test_a_payload_in_use_outlives_closing(tmp_path: Path) -> None:
    filled(tmp_path)
    tier = opened(tmp_path)
    read = tier.get(key(0))
    tier.close()
    np.testing.assert_array_equal(read, payload(0))
