"""New MLflow stores on SQLite in milliseconds: the first is made by MLflow's fifty migrations, the others copy it."""

from __future__ import annotations

import sqlite3
from typing import Any

from alembic import command

migrate = command.upgrade  # MLflow's own way
_template = sqlite3.connect(":memory:", check_same_thread=False)


def upgrade(config: Any, revision: str, *arguments: Any, **options: Any) -> None:
    """In place of alembic's: the tables of the first store, if there was one."""
    connection = config.attributes.get("connection")
    if connection is None or connection.dialect.name != "sqlite":
        migrate(config, revision, *arguments, **options)
        return
    store: sqlite3.Connection = connection.connection.driver_connection
    if _template.execute("select count(*) from sqlite_master").fetchone()[0]:
        _template.backup(store)
    else:
        migrate(config, revision, *arguments, **options)
        store.backup(_template)


def install() -> None:
    command.upgrade = upgrade
