"""Blocks on disk: one file of fixed slots for one model in one numeric mode, which survives restarts.

Layout, numbers little end first: a page of file header; a table of slot headers; the payloads, each at a
multiple of a page. A payload is written before its slot header, and a slot header is wiped before its payload
changes: a process that dies leaves slots that are right or empty. A machine that dies is left to the
checksums. Reads go through a memory map, writes do not: on a full disk a write to a map kills the process.
So does a map's page that the disk cannot read: a plain read comes first, which brings the pages or an error.

What is wrong (a checksum, a foreign file, an older layout) is counted and never served. Once it is open, no
failure of the disk leaves this file as an exception.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections import OrderedDict
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stoker.cache.tiers import Payload

MAGIC = b"STOKERKV"
VERSION = 1  # of the layout; a file of another one is replaced
PAGE_BYTES = 4096
SUFFIX = ".blocks"
CAPS_IN_FOLDER = 4  # models that are served in turn keep theirs; those long gone do not pile up
MAX_SLOTS = 1 << 24  # their headers take 1.3 GB: a cap beyond that is a mistake

_FILE_HEADER = struct.Struct("<8sI4xQQ32s")  # magic, version, block bytes, slots, digest of the identity
_SLOT_HEADER = struct.Struct("<32s32sQ8x")  # digest of the prefix, checksum, logical time of the last use
_LAST_USE_AT = 64
_SLOT_FIELDS = np.dtype([("digest", "V32"), ("checksum", "V32"), ("last_use", "<u8"), ("unused", "V8")])


class OpenedTier(NamedTuple):
    """A disk tier, or why there is none."""

    tier: DiskTier | None
    reason: str | None


def open_disk_tier(folder: Path, *, identity: bytes, block_bytes: int, cap_bytes: int) -> OpenedTier:
    """The tier for `identity` in `folder`, or the reason why this process works without one.

    Reasons are another process that has it open, a cap that holds no block, and whatever the system says.
    """
    try:
        tier = DiskTier(folder, identity=identity, block_bytes=block_bytes, cap_bytes=cap_bytes)
    except BlockingIOError:
        return OpenedTier(None, f"another process keeps this model's blocks in {folder}")
    except (OSError, ValueError) as error:
        return OpenedTier(None, f"no blocks can be kept in {folder}: {error}")
    return OpenedTier(tier, None)


class DiskTier:
    """A `BlockTier` in a file of at most `cap_bytes`, sparse until written. Locks other processes out."""

    def __init__(self, folder: Path, *, identity: bytes, block_bytes: int, cap_bytes: int) -> None:
        """Opens the file, or makes it; files of other models go, oldest first, while `folder` holds more than
        `CAPS_IN_FOLDER` caps. A file that was made for another cap is replaced by an empty one.

        Raises BlockingIOError if another process has it open, OSError, ValueError for a cap without room.
        """
        self.block_bytes = block_bytes
        self.slots = _slots_within(cap_bytes, block_bytes)
        self.rejected = 0  # files and slots that were not what they claimed to be
        self.write_failures = 0
        self.stopped = False  # after a failed write (a full disk): what is there is still read
        self._identity = sha256(identity).digest()
        self._payloads_at = _payloads_at(self.slots)
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # by digest, least recently used first
        self._checksums: dict[bytes, bytes] = {}
        self._free: list[int] = []  # a stack, lowest on top
        self._touched: set[bytes] = set()  # used since their last use was written
        self._clock = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / (self._identity.hex()[:32] + SUFFIX)
        self._lock = _lock(self.path)
        try:
            _trim(folder, self.path, CAPS_IN_FOLDER * cap_bytes)
            self._file = self._open_file()
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._map = mmap.mmap(self._file, self.size_bytes, access=mmap.ACCESS_READ)
            self._read_index()
        except BaseException:
            os.close(self._file)
            os.close(self._lock)
            raise

    def __len__(self) -> int:
        return len(self._slot_of)

    def __bool__(self) -> bool:
        return True  # an empty tier is a tier

    @property
    def size_bytes(self) -> int:
        """Length of the file: what it takes on disk when every slot is written."""
        return self._payloads_at + self.slots * _to_pages(self.block_bytes)

    def has(self, digest: bytes) -> bool:
        """Whether a slot claims to hold it; reads nothing."""
        return digest in self._slot_of

    def touch(self, digest: bytes) -> None:
        """It was used, where it is in memory: others give way first. Written down when the tier closes."""
        if digest in self._slot_of:
            self._slot_of.move_to_end(digest)
            self._touched.add(digest)

    def put(self, digest: bytes, payload: Payload) -> bool:
        """Keep a block's bytes [block_bytes], in the place of the least recently used if no slot is free.

        False if they cannot be written; after the first such failure nothing is written any more.
        """
        if digest in self._slot_of:
            self._slot_of.move_to_end(digest)
            return True
        if self.stopped or payload.nbytes != self.block_bytes:
            return False
        if not self._free and not self._drop(next(iter(self._slot_of))):
            return False
        slot = self._free[-1]
        checksum = _checksum(digest, payload)
        self._clock += 1
        header = _SLOT_HEADER.pack(digest, checksum, self._clock)
        if not (self._write(self._payload_at(slot), payload.data) and self._write(_header_at(slot), header)):
            return False
        self._free.pop()
        self._slot_of[digest] = slot
        self._checksums[digest] = checksum
        return True

    def get(self, digest: bytes) -> Payload | None:
        """[block_bytes] the bytes that were put, if they are unchanged. Valid until the next `put`."""
        slot = self._slot_of.get(digest)
        if slot is None:
            return None
        start = self._payload_at(slot)
        if self._is_readable(start):
            payload = np.frombuffer(self._map, np.uint8, self.block_bytes, start)
            if _checksum(digest, payload) == self._checksums[digest]:
                self._slot_of.move_to_end(digest)
                if not self.stopped:
                    self._write_last_use(slot)
                return payload
        self.rejected += 1
        self._drop(digest)
        return None

    def flush(self) -> None:
        """Wait until what was written would survive the machine's end. A failure counts as one to write."""
        try:
            os.fsync(self._file)
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Let the file and its lock go. Nothing else may be called afterwards."""
        for digest in [digest for digest in self._slot_of if digest in self._touched]:
            if not self.stopped:
                self._write_last_use(self._slot_of[digest])
        with suppress(BufferError):  # a payload is still in use: the map goes with it
            self._map.close()
        os.close(self._file)
        os.close(self._lock)

    def _open_file(self) -> int:
        """A descriptor of a file whose header is ours; what stands in its place otherwise is replaced."""
        header = _FILE_HEADER.pack(MAGIC, VERSION, self.block_bytes, self.slots, self._identity)
        if self.path.exists():
            file = os.open(self.path, os.O_RDWR)
            try:
                found, size_bytes = os.pread(file, len(header), 0), os.fstat(file).st_size
            except BaseException:  # a pipe, a bad sector
                os.close(file)
                raise
            if found == header and size_bytes == self.size_bytes:
                return file
            os.close(file)
            if not self._is_for_another_cap(found, size_bytes):
                self.rejected += 1
        temporary = self.path.with_suffix(".new")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.pwrite(file, header, 0)
            os.truncate(file, self.size_bytes)
            os.rename(temporary, self.path)
        except BaseException:
            os.close(file)
            temporary.unlink(missing_ok=True)
            raise
        return file

    def _is_for_another_cap(self, header: bytes, size_bytes: int) -> bool:
        if len(header) != _FILE_HEADER.size:
            return False
        magic, version, block_bytes, slots, identity = _FILE_HEADER.unpack(header)
        right = (magic, version, block_bytes, identity) == (
            MAGIC, VERSION, self.block_bytes, self._identity,
        )  # fmt: skip
        return (
            right
            and slots != self.slots
            and size_bytes == _payloads_at(slots) + slots * _to_pages(block_bytes)
        )

    def _read_index(self) -> None:
        """From the slot headers: where each digest lies, in the order of its last use."""
        raw = os.pread(self._file, self.slots * _SLOT_HEADER.size, PAGE_BYTES)
        if len(raw) != self.slots * _SLOT_HEADER.size:
            raise OSError(f"{self.path} has {len(raw)} bytes of slot headers")
        slots = np.frombuffer(raw, _SLOT_FIELDS)
        words = np.frombuffer(raw, "<u8").reshape(self.slots, -1)
        taken = np.any(words[:, :4], axis=1)  # a digest of zeros: an empty slot
        order = np.argsort(slots["last_use"], kind="stable")
        for slot in order[taken[order]].tolist():
            digest = slots["digest"][slot].tobytes()
            if digest in self._slot_of:  # twice: the later one counts
                self.rejected += 1
                self._free.append(self._slot_of.pop(digest))
            self._slot_of[digest] = slot
            self._checksums[digest] = slots["checksum"][slot].tobytes()
        self._free += np.flatnonzero(~taken).tolist()
        self._free.sort(reverse=True)
        # A corrupt time must not run into the end of its 8 bytes.
        self._clock = min(int(slots["last_use"].max()), 1 << 62)

    def _drop(self, digest: bytes) -> bool:
        """Wipe its slot; false if that cannot be written, and then the slot is not used again."""
        slot = self._slot_of.pop(digest)
        del self._checksums[digest]
        self._touched.discard(digest)
        wiped = not self.stopped and self._write(_header_at(slot), bytes(_SLOT_HEADER.size))
        if wiped:
            self._free.append(slot)
        return wiped

    def _is_readable(self, start: int) -> bool:
        """Whether the disk has the payload there: neither beyond the file's end nor in a bad sector."""
        try:
            return len(os.pread(self._file, self.block_bytes, start)) == self.block_bytes
        except OSError:
            return False

    def _write_last_use(self, slot: int) -> None:
        self._clock += 1
        self._write(_header_at(slot) + _LAST_USE_AT, self._clock.to_bytes(8, "little"))

    def _write(self, at: int, data: bytes | memoryview) -> bool:
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._file, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            self._fail(error)
            return False
        return True

    def _fail(self, error: OSError) -> None:
        self.write_failures += 1
        if self.stopped:
            return
        self.stopped = True
        import logging  # on first need: 5 ms of a worker's start

        logging.getLogger(__name__).warning(
            "prefixes are no longer written to disk: %s: %s", self.path, error.strerror
        )

    def _payload_at(self, slot: int) -> int:
        return self._payloads_at + slot * _to_pages(self.block_bytes)


def _checksum(digest: bytes, payload: Payload) -> bytes:
    """Over the prefix's digest too, so that a slot header that moved does not name another's bytes.

    SHA-256: 0.11 ms for SmolLM2's 196 kB with the processor's instructions for it, half of BLAKE2b's time.
    """
    state = sha256(digest)
    state.update(payload.data)
    return state.digest()


def _header_at(slot: int) -> int:
    return PAGE_BYTES + slot * _SLOT_HEADER.size


def _payloads_at(slots: int) -> int:
    return _to_pages(PAGE_BYTES + slots * _SLOT_HEADER.size)


def _to_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def _slots_within(cap_bytes: int, block_bytes: int) -> int:
    if block_bytes < 1:
        raise ValueError(f"a block has {block_bytes} bytes; allowed: at least 1")
    # Both roundings to a page are paid before the slots are counted.
    slots = (cap_bytes - 2 * PAGE_BYTES) // (_to_pages(block_bytes) + _SLOT_HEADER.size)
    if slots < 1:
        least = 2 * PAGE_BYTES + _to_pages(block_bytes) + _SLOT_HEADER.size
        raise ValueError(f"the cap is {cap_bytes} bytes; allowed: at least {least}, for one block")
    return min(slots, MAX_SLOTS)


def _lock(path: Path) -> int:
    """A descriptor that holds the file's lock until it is closed.

    The lock has a file of its own, which stays: the other one may be replaced.
    """
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _trim(folder: Path, own: Path, most_bytes: int) -> None:
    """Remove other models' files that nobody has open, oldest first, while all take more than that."""
    found = []
    for path in folder.glob("*" + SUFFIX):
        with suppress(OSError):  # gone meanwhile
            status = path.stat()
            found.append((status.st_mtime_ns, path, status.st_blocks * 512))
    total = sum(size_bytes for _, _, size_bytes in found)
    for _, path, size_bytes in sorted(found):
        if total <= most_bytes:
            return
        if path == own:
            continue
        with suppress(OSError):  # in use, or not ours to remove
            lock = _lock(path)
            try:
                path.unlink()
                total -= size_bytes
            finally:
                os.close(lock)
