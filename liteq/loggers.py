"""Where the loggers of liteq's modules come from.

What liteq logs is for those who set logging up: without the `NullHandler`, the errors of
tasks would be written to the standard error of a program that handles them.

Modules that every sender of calls loads import this where they log something, which is
rare: `logging` takes as long to import as a third of liteq.
"""

from __future__ import annotations

import logging

__all__ = ["get_logger"]

logging.getLogger("liteq").addHandler(logging.NullHandler())

get_logger = logging.getLogger
