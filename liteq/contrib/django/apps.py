"""The Django app: the command `manage.py liteq`, the permissions of the pages."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig

__all__ = ["LiteqConfig"]


class LiteqConfig(AppConfig):  # type: ignore[misc]  # Django ships no types
    """`liteq.contrib.django` in `INSTALLED_APPS`."""

    name = "liteq.contrib.django"
    label = "liteq"
    verbose_name = "Background tasks"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Have `@shared_task` belong to the project's app, even where nothing makes one."""
        import_module("liteq.contrib.django.project")
