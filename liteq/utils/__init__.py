"""Celery's import paths: what moved projects import from `liteq.utils`."""

from __future__ import annotations

from liteq.ids import new_id

__all__ = ["gen_unique_id", "uuid"]

uuid = gen_unique_id = new_id
