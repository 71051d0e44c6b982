"""Fingerprints of one length: SHA-256 of those that were longer than their column.

SQLite alone had taken them.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    account_id = sa.column("account_id", sa.BigInteger)
    key, fingerprint = sa.column("idempotency_key", sa.String), sa.column("fingerprint", sa.String)
    answers = sa.table("answers", account_id, key, fingerprint)
    longer = (
        sa.select(account_id, key, fingerprint)
        .select_from(answers)
        .where(sa.func.length(fingerprint) > 64)
    )
    connection = op.get_bind()
    for row in connection.execute(longer).all():
        mark = hashlib.sha256(row.fingerprint.encode()).hexdigest()
        same = (account_id == row.account_id) & (key == row.idempotency_key)
        connection.execute(answers.update().where(same).values(fingerprint=mark))
