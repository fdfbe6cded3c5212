"""What Django's permissions are given for: what the buttons of the pages do."""

from __future__ import annotations

from django.db import models

__all__ = ["Pages"]


class Pages(models.Model):  # type: ignore[misc]  # Django ships no types
    """No table: the store is not in the project's database. Permissions belong to a model,
    and `migrate` makes those of one that has none, too."""

    class Meta:
        managed = False
        default_permissions = ()
        verbose_name = verbose_name_plural = "background tasks"
        permissions = (  # as `can` of `liteq.web.asgi_app` is asked
            ("retry", "Can run tasks again"),
            ("cancel", "Can cancel and end tasks"),
            ("drop", "Can delete tasks"),
            ("pause", "Can pause and resume queues"),
            ("purge", "Can purge queues"),
            ("schedule", "Can run, pause and resume schedules"),
            ("worker", "Can steer workers"),
        )
