"""Fixtures that many tests share: the two real models, where they are present."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from stoker.api.errors import ModelNotFoundError
from stoker.weights.sources import KNOWN_MODELS
from stoker.weights.store import resolve

# Some hundred libraries and four thousand tests make millions of objects that live to the end. Looking
# through them for garbage took half a second each time: not while they are made, nor after.
gc.disable()

# How long an example takes says more of the machine's other work than of the code; tests of time say so.
settings.register_profile("no-clock", deadline=None)
settings.load_profile("no-clock")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What collecting made is never garbage."""
    gc.collect()
    gc.freeze()
    gc.collect()  # of nothing: the next ones come by what tests make, not by what there was before
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _no_state_of_the_users() -> Iterator[None]:
    """Servers that tests start keep nothing, unless they say where: never run somebody's own batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOKER_STATE", "none")
        yield


def _model_path(name: str) -> Path:
    """The file of a known model from the folder STOKER_MODELS or the store; skips the test without it."""
    model = KNOWN_MODELS[name]
    folder = os.environ.get("STOKER_MODELS")
    if folder:
        path = Path(folder) / model.file_name
        if path.is_file() and path.stat().st_size == model.size_bytes:
            return path
    try:
        return resolve(name)
    except ModelNotFoundError:
        pytest.skip(f"{name} is not here: run `stoker pull {name}`, or set STOKER_MODELS to its folder")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2 135M Instruct, Q4_1."""
    return _model_path("smollm2")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M."""
    return _model_path("gemma3-270m")
