"""The tables of keys and credits, which `migrations/` makes; a test compares the two.

Credits are whole numbers of tenths. Times are whole milliseconds since 1970, UTC.

An account holds its credits in two books, `available` and `held`; outside are `issued` (where
granted credits come from) and `earned` (where spent ones go). An entry moves credits from one book
to another and is never changed, so every entry sums to zero, and a book's balance is what entries
moved in less what they moved out. `accounts.available` and `accounts.held` keep the two sums.
"""

from __future__ import annotations

import sqlalchemy as sa

Millis = sa.BigInteger
_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers only INTEGER keys.

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False, unique=True),
    sa.Column("available", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("held", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("rate", sa.String(100)),
    sa.Column("concurrency", sa.Integer),
    sa.Column("created_at", Millis, nullable=False),
    sa.CheckConstraint("available >= 0", name="available_not_negative"),
    sa.CheckConstraint("held >= 0", name="held_not_negative"),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("account_id", _Id, sa.ForeignKey("accounts.id"), nullable=False, index=True),
    # The start of the digest finds the row; the whole is then compared in constant time.
    sa.Column("lookup", sa.String(16), nullable=False, index=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", Millis, nullable=False),
    sa.Column("expires_at", Millis),
    sa.Column("revoked_at", Millis),
)

servers = sa.Table(
    "servers",
    metadata,
    sa.Column("name", sa.String(300), primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),
)

reservations = sa.Table(
    "reservations",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("account_id", _Id, sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("server", sa.String(300), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False, index=True),
    sa.Column("lease_until", Millis, nullable=False),
    sa.Column("created_at", Millis, nullable=False),
    sa.Column("ended_at", Millis),
    # Asked for; once settled, those that came.
    sa.Column("images", sa.Integer, nullable=False, server_default="1"),
    sa.CheckConstraint("amount >= 0", name="amount_not_negative"),
    sa.CheckConstraint("state IN ('open', 'settled', 'released', 'refunded')", name="known_state"),
    sa.Index("ix_reservations_state_lease_until", "state", "lease_until"),
    sa.Index("ix_reservations_account_id_state_ended_at", "account_id", "state", "ended_at"),
)

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("account_id", _Id, sa.ForeignKey("accounts.id"), nullable=False, index=True),
    sa.Column("reservation_id", sa.String(32), sa.ForeignKey("reservations.id"), index=True),
    sa.Column("kind", sa.String(10), nullable=False),
    sa.Column("source", sa.String(10), nullable=False),
    sa.Column("target", sa.String(10), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("created_at", Millis, nullable=False),
    sa.CheckConstraint("amount > 0", name="amount_positive"),
    sa.CheckConstraint("source <> target", name="books_differ"),
)

answers = sa.Table(
    "answers",
    metadata,
    sa.Column("account_id", _Id, sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("idempotency_key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("reservation_id", sa.String(32), sa.ForeignKey("reservations.id"), nullable=False),
    sa.Column("created_at", Millis, nullable=False),
    sa.Column("expires_at", Millis, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    # None while the first request still runs. Last, so that SQLite skips it in scans.
    sa.Column("body", sa.LargeBinary),
    sa.Index("ix_answers_reservation_id", "reservation_id"),
    sa.Index("ix_answers_created_at_size", "created_at", "size"),
    sa.Index("ix_answers_expires_at", "expires_at"),
)
