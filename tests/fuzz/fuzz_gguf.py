"""Coverage-guided fuzzing of the GGUF reader with atheris; run by hand, since atheris is no dependency.

    pip install atheris
    PYTHONPATH=src:. python tests/fuzz/fuzz_gguf.py CORPUS_FOLDER -max_total_time=300 -max_len=4096

An empty corpus folder is seeded with a small valid file. Anything but a StokerError is a finding.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["stoker.weights"]):
    from stoker.api.errors import ModelFormatError, StokerError
    from stoker.weights.gguf import GGUFFile
    from stoker.weights.inspect import describe
    from stoker.weights.metadata import Array

from tests.gguf_builder import small_file

_FOLDER = tempfile.TemporaryDirectory()
_PATH = Path(_FOLDER.name) / "fuzzed.gguf"


def read_one(content: bytes) -> None:
    """Open ``content`` as a file and read all of it."""
    _PATH.write_bytes(content)
    with contextlib.suppress(StokerError), GGUFFile.open(_PATH, allow_unsupported=True) as opened:
        for info in opened.tensors.values():
            assert len(opened.data(info)) == info.n_bytes
        for value in opened.metadata.values():
            if isinstance(value, Array):
                with contextlib.suppress(ModelFormatError):
                    assert len(value.tolist()) == len(value)
        describe(opened)


def main() -> None:
    """Seed the corpus where it is empty, then fuzz."""
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    for folder in folders[:1]:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            (folder / "small").write_bytes(small_file().to_bytes())
    atheris.Setup(sys.argv, read_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
