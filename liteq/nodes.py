"""What a worker is called, and the files that are called after it, by Celery's marks."""

from __future__ import annotations

import re
import socket

__all__ = ["file_of", "node_name"]


def node_name(name: str | None) -> str:
    """Return the worker's name, with Celery's `%h`, `%n` and `%d` filled in."""
    host = socket.gethostname()
    short, _, domain = host.partition(".")
    text = name or "liteq@%h"
    for mark, value in (("%h", host), ("%n", short), ("%d", domain)):
        text = text.replace(mark, value)
    return text if "@" in text else f"{text}@{host}"


def file_of(node: str, path: str) -> str:
    """Return the path of a worker's file, with the marks of its name filled in.

    `%n` is what stands before the `@` of the node's name, `%h` what stands behind it, `%d` the
    domain in that, `%p` the whole name, and `%%` a percent sign. Celery numbers the files of
    children by `%i` and `%I`; here one file is for all of them, the 0th.
    """
    name, _, host = node.partition("@")
    domain = host.partition(".")[2]
    marks = {"p": node, "n": name, "h": host, "d": domain, "i": "0", "I": "", "%": "%"}
    return re.sub("%([pnhdiI%])", lambda mark: marks[mark[1]], path)
