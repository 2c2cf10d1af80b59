"""What `make bench` starts beside Stoker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("absolute", [False, True])
def test_the_environment_of_llama_cpp_is_made_by_the_python_that_is_named(
    tmp_path: Path, absolute: bool
) -> None:
    """Also by a path that is relative to where the script was started, which is how make names it."""
    (tmp_path / "bench" / "peers").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv").mkdir()
    script = shutil.copy(ROOT / "bench" / "peers" / "llama_cpp.sh", tmp_path / "bench" / "peers")
    compiler, python = tmp_path / "scripts" / "ensure-compiler", tmp_path / ".venv" / "python"
    compiler.write_text("#!/bin/sh\n")
    # Makes an environment whose python says what it was asked for.
    python.write_text(
        '#!/bin/sh\nmkdir -p "$3/bin"\nprintf \'#!/bin/sh\\necho "$@" >> asked\\n\' > "$3/bin/python"\n'
        'chmod +x "$3/bin/python"\n'
    )
    for file in (compiler, python):
        file.chmod(0o755)
    named = str(python) if absolute else ".venv/python"
    environment = {name: value for name, value in os.environ.items() if name != "STOKER_BENCH_LLAMA_PYTHON"}
    subprocess.run(["sh", script, named], cwd=tmp_path, env=environment, check=True, capture_output=True)
    asked = (tmp_path / "bench" / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == ["pip", "llama-cpp-python"]
