"""Celery's import paths: what moved projects import from `liteq.utils`."""
