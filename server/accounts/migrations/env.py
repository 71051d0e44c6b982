"""Runs the revisions on the connection that `server.accounts.db` hands over."""

from __future__ import annotations

from alembic import context

from server.accounts.tables import metadata

connection = context.config.attributes["connection"]
# SQLite's DDL is transactional too, once its transactions are begun by hand.
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
