"""How many images a reservation is for.

Those of before were counted as one each, and so they are now. A server of the revision before goes
on beside one of this: it leaves the column at 1.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "reservations", sa.Column("images", sa.Integer, nullable=False, server_default="1")
    )
