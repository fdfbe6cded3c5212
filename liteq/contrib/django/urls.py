"""The pages of `liteq web`, for `path("liteq/", include("liteq.contrib.django.urls"))`."""

from __future__ import annotations

from django.urls import path

from liteq.contrib.django.pages import pages

app_name = "liteq"
urlpatterns = [
    path("", pages, name="index"),
    path("<path:path>", pages, name="page"),
]
