"""For Django projects. All but the class of their tasks works by itself, in every app of a
program whose `DJANGO_SETTINGS_MODULE` is set: see `liteq.djangoproject`."""

from __future__ import annotations

from liteq.contrib.django.task import DjangoTask

__all__ = ["DjangoTask"]
