"""The schema's revisions, oldest first, for Alembic."""
