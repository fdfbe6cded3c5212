"""Results: of one call, of several as one, of a group, as Celery's module has them."""

from __future__ import annotations

from liteq.asyncresult import AsyncResult, signal_name
from liteq.eagerresult import EagerResult
from liteq.groupresult import GroupResult, result_from_tuple
from liteq.joining import allow_join_result, assert_will_not_block, denied_join_result
from liteq.progress import PastAttempt, Progress
from liteq.resultbase import ResultBase
from liteq.resultset import ResultSet
from liteq.states import PROGRESS

__all__ = [
    "PROGRESS",
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "PastAttempt",
    "Progress",
    "ResultBase",
    "ResultSet",
    "allow_join_result",
    "assert_will_not_block",
    "denied_join_result",
    "result_from_tuple",
    "signal_name",
]
