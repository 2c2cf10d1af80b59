"""What a disk refuses, as one of Stoker's errors."""

from __future__ import annotations

import errno

from stoker.api.errors import CapacityError, StokerError, UnavailableError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_error(error: OSError, what: str) -> StokerError:
    """`CapacityError` for a full disk or quota, else `UnavailableError`; `what` begins its sentence."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return CapacityError(f"{what}: {reason}", hint="make room on the disk")
    return UnavailableError(f"{what}: {reason}")
