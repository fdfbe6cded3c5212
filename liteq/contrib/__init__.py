"""Frameworks, and the import paths of Celery's `contrib`."""
