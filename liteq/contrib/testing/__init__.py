"""Celery's import paths for what is in `liteq.testing`."""
