"""Celery's `pytest_plugins = ("celery.contrib.pytest",)`: here pytest finds the plugin by
itself (`liteq.pytest_plugin`), and this module is empty."""
