"""Answers kept for their Idempotency-Key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("reservation_id", sa.String(32), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.PrimaryKeyConstraint("account_id", "idempotency_key", name="pk_answers"),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_answers_account_id"),
        sa.ForeignKeyConstraint(
            ["reservation_id"], ["reservations.id"], name="fk_answers_reservation_id"
        ),
    )
    op.create_index("ix_answers_reservation_id", "answers", ["reservation_id"])
    op.create_index("ix_answers_created_at_size", "answers", ["created_at", "size"])
    op.create_index("ix_answers_expires_at", "answers", ["expires_at"])
