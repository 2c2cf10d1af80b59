"""How the tables came to be what they are: ordered steps, of which a database has done the first few.

Steps are plain SQL that SQLite and PostgreSQL both understand (TEXT, BIGINT, no blobs), and are never changed
once they were released: a new one is appended. Not alembic: it costs an import on every start and a folder of
templates, and what it adds (branches, downgrades, telling changes from models) is not wanted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from stoker.api.errors import UnavailableError

# Taken while tables change in PostgreSQL; any number that other programs on the database do not use.
_ADVISORY_LOCK = 0x53544F4B4552
_VERSION_TABLE = "stoker_schema"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step, done in one transaction."""

    number: int  # from 1, without gaps
    what: str
    statements: tuple[str, ...]


_FILES = """
CREATE TABLE files (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    place TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    expires_s BIGINT,
    size_bytes BIGINT NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL
)
"""
_BATCHES = """
CREATE TABLE batches (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    tenant TEXT NOT NULL,
    place TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    expires_s BIGINT NOT NULL,
    endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    completion_window TEXT NOT NULL,
    output_expires_s BIGINT,
    metadata TEXT,
    status TEXT NOT NULL,
    times TEXT NOT NULL,
    total BIGINT NOT NULL,
    completed BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    token_usage TEXT,
    errors TEXT,
    output_file_id TEXT,
    error_file_id TEXT
)
"""
_RESPONSES = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    place TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    previous_id TEXT,
    status TEXT NOT NULL,
    body TEXT NOT NULL,
    items TEXT NOT NULL,
    request TEXT,
    events TEXT
)
"""
_COMPLETIONS = """
CREATE TABLE completions (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    model TEXT NOT NULL,
    body TEXT NOT NULL,
    messages TEXT NOT NULL
)
"""
_COMPLETION_METADATA = """
CREATE TABLE completion_metadata (
    completion_id TEXT NOT NULL,
    name TEXT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (completion_id, name)
)
"""

MIGRATIONS: Sequence[Migration] = (
    Migration(
        1,
        "files and batches",
        (
            _FILES,
            "CREATE INDEX files_of_owner ON files (owner, created_us, id)",
            _BATCHES,
            "CREATE INDEX batches_of_owner ON batches (owner, created_us, id)",
            "CREATE INDEX batches_by_status ON batches (status)",
        ),
    ),
    Migration(
        2,
        "responses and chat completions",
        (
            _RESPONSES,
            "CREATE INDEX responses_by_previous ON responses (previous_id)",
            "CREATE INDEX responses_by_status ON responses (status)",
            "CREATE INDEX responses_by_age ON responses (created_us)",
            _COMPLETIONS,
            "CREATE INDEX completions_of_owner ON completions (owner, created_us, id)",
            _COMPLETION_METADATA,
        ),
    ),
)


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Do the steps that this database has not; returns their count.

    `connection` is in a transaction that no other writer shares (SQLite), or takes a lock (PostgreSQL), so
    that two servers that start at once do not both migrate. Raises `UnavailableError` if the database is
    ahead of this version.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    connection.execute(
        text(f"CREATE TABLE IF NOT EXISTS {_VERSION_TABLE} (number INTEGER PRIMARY KEY, what TEXT NOT NULL)")
    )
    last = text(f"SELECT coalesce(max(number), 0) FROM {_VERSION_TABLE}")
    done: int = connection.execute(last).scalar_one()
    if done > len(migrations):
        raise UnavailableError(
            f"the state database has schema {done}, written by a newer version of stoker; "
            f"this one knows up to {len(migrations)}",
            hint="use the newer version, or another database (--state)",
        )
    for migration in migrations[done:]:
        for statement in migration.statements:
            connection.execute(text(statement))
        connection.execute(
            text(f"INSERT INTO {_VERSION_TABLE} (number, what) VALUES (:number, :what)"),
            {"number": migration.number, "what": migration.what},
        )
    return len(migrations) - done
