"""A state on SQLite and on PostgreSQL: every test that takes `location` runs on both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.postgresql import Cluster, cluster

from stoker.state import StateLocation, locate_state


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """One server for all tests; skips them where it is not installed."""
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> StateLocation:
    """An empty database."""
    if request.param == "sqlite":
        found = locate_state(str(tmp_path / "state.db"))
    else:
        server = request.getfixturevalue("postgresql")
        server.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        found = locate_state(server.url, folder=tmp_path / "data")
    assert found is not None
    return found
