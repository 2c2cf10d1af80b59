"""From a name or path to an engine: options are checked, and what fails says for which file and why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.gguf_builder import GGUF, STRING, small_file

from stoker import LLM, _native
from stoker.api.errors import CapacityError, ModelFormatError, ModelNotFoundError, RequestError
from stoker.engine.load import LoadOptions
from stoker.engine.scheduler import SchedulerOptions
from stoker.models import load as models_load


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("threads", 0, "1 to 256"),
        ("threads", 257, "1 to 256"),
        ("threads", True, "1 to 256"),
        ("threads", 1.5, "1 to 256"),
        ("threads", "2", "1 to 256"),
        ("context_tokens", 0, "1 to"),
        ("context_tokens", 2.0, "1 to"),
        ("kv_bytes", 0, "1 to"),
        ("kv_bytes", 1e9, "1 to"),
        ("kv_bytes", None, "1 to"),
        ("kv_bytes", 1 << 80, "1 to"),
        ("kv_type", 8, "int8, f16"),
    ],
)
def test_options_are_checked(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(RequestError) as caught:
        LoadOptions(**{field: value})
    assert str(caught.value).startswith(f"{field} is {value!r}; allowed: ")
    assert allowed in str(caught.value)


@pytest.mark.parametrize("field", ["batch_tokens", "max_sequences", "logit_rows", "chunk_tokens"])
@pytest.mark.parametrize("value", [0, "x", 1.5, True])
def test_limits_of_a_step_are_checked(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{field} is {value!r}; allowed: a whole number"):
        SchedulerOptions(**{field: value})


@pytest.mark.parametrize("model", [None, 5, b"smollm2"])
def test_a_model_that_is_no_name(model: Any) -> None:
    with pytest.raises(RequestError, match="allowed: a name or a path"):
        LLM(model)


@pytest.mark.parametrize("model", ["x" * 5000, "./" + "y" * 5000, "", "a\0b"])
def test_a_model_that_cannot_be_a_file(model: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        LLM(model)
    assert len(str(caught.value)) < 400


def test_what_is_wrong_behind_the_header_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for file, says in (
        (GGUF(), "general.architecture is missing; allowed: gemma3, llama"),
        (
            GGUF(keys=[("general.architecture", STRING, "mamba")]),
            "general.architecture is 'mamba'; allowed: ",
        ),
    ):
        path.write_bytes(file.to_bytes())
        with pytest.raises(ModelFormatError) as caught:
            LLM(path)
        assert str(caught.value).startswith(f"{path}: {says}")
    path.write_bytes(small_file().to_bytes()[:20])
    with pytest.raises(ModelFormatError) as caught:
        LLM(path)
    assert str(caught.value).count(str(path)) == 1


class _NoThreads:
    def __init__(self, threads: int) -> None:
        raise RuntimeError("Resource temporarily unavailable")


@pytest.mark.model
def test_threads_that_the_system_refuses(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "ThreadPool", _NoThreads)
    with pytest.raises(
        CapacityError, match=r"2 threads could not be started: Resource .*hint: ask for fewer"
    ):
        LLM(smollm2_path, threads=2)


@pytest.mark.model
def test_memory_that_runs_out_while_loading(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(models_load, "load_weights", exhausted)
    with pytest.raises(CapacityError, match="not enough memory to load"):
        LLM(smollm2_path, threads=1)


@pytest.mark.model
def test_a_path_needs_no_home_folder_and_copies_share_a_tokenizer(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("STOKER_HOME", raising=False)
    ids = LLM(smollm2_path, threads=1).tokenize("hello")
    kept = list((cache / "stoker" / "tokenizers").iterdir())
    assert len(kept) == 1
    copy = tmp_path / "copy.gguf"
    shutil.copy(smollm2_path, copy)
    assert LLM(copy, threads=1).tokenize("hello") == ids
    assert list((cache / "stoker" / "tokenizers").iterdir()) == kept  # the same header, at another path

    monkeypatch.delenv("XDG_CACHE_HOME")

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert LLM(copy, threads=1).tokenize("hello") == ids
    with pytest.raises(ModelNotFoundError, match="set STOKER_HOME"):
        LLM("smollm2", threads=1)
