"""The pool's limits, and a system that refuses threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stoker import _native

# Only an unprivileged user is held to RLIMIT_NPROC, so the child gives up root first.
REFUSED = """
import os, resource
from stoker import _native
os.setgid(65534)
os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    _native.ThreadPool(16)
except RuntimeError as error:
    print("refused:", error)
print(_native.ThreadPool(1).threads)
"""


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_how_many_threads_are_allowed_is_said(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}; allowed are 1 to 256"):
        _native.ThreadPool(threads)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become another user")
def test_a_system_without_threads_left_is_an_error_not_a_crash() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused:")
    assert done.stdout.endswith("1\n")


def test_pools_end_whenever_they_are_told_to() -> None:
    """In a process of its own: what went wrong was a join that never came back, in one of thousands."""
    code = (
        "from stoker import _native\n"
        "for i in range(20000):\n"
        "    pool = _native.ThreadPool(2 + i % 3)\n"
        "    del pool"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
