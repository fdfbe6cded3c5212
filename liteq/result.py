"""Results: of one call, of several as one, of a group, as Celery's module has them."""

from __future__ import annotations

from liteq.results.asyncresult import AsyncResult, signal_name
from liteq.results.base import ResultBase
from liteq.results.eagerresult import EagerResult
from liteq.results.groupresult import GroupResult, result_from_tuple
from liteq.results.joining import allow_join_result, assert_will_not_block, denied_join_result
from liteq.results.progress import PastAttempt, Progress
from liteq.results.resultset import ResultSet
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
