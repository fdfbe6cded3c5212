"""The options of a task and of a call: their names, and what their values may be.

Everything here is a pure function of its arguments: what time it is and which time zone
a naive datetime is read in are passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final

from liteq.clock import FromNow

if TYPE_CHECKING:
    from typing import Literal, TypedDict

    from liteq.limits import MaxConcurrency, RateLimit

else:

    class TypedDict:
        """Stands in for typing's, which compiles every annotation: 2 ms of each start."""

        def __init_subclass__(cls, *, total: bool = True) -> None:
            """Take what typing's takes."""


__all__ = [
    "CALL_OPTIONS",
    "MAX_TIME",
    "TASK_OPTIONS",
    "TASK_WITHOUT_EFFECT",
    "UNIQUE_OPTIONS",
    "WITHOUT_EFFECT",
    "CallOptions",
    "RetryOptions",
    "TaskOptions",
    "checked_count",
    "checked_deliveries",
    "checked_limits",
    "checked_priority",
    "checked_seconds",
    "due_at",
    "expires_at",
    "named",
    "refuse_unknown",
]

MAX_TIME: Final = 253_402_300_800.0  # the end of the year 9999, the last a datetime holds
_MOST: Final = 2**31 - 1  # of what is counted


class RetryOptions(TypedDict, total=False):
    """What `Task.retry` takes besides args, kwargs, exc, throw, eta, countdown."""

    expires: float | timedelta | datetime | str | None
    queue: Any
    priority: int | None
    serializer: str | None
    ignore_result: bool | None
    time_limit: float | None
    soft_time_limit: float | None
    headers: Mapping[str, Any] | None
    argsrepr: str | None
    kwargsrepr: str | None
    retry: bool | None
    retry_policy: Mapping[str, Any] | None
    add_to_parent: bool
    acks_late: bool | None
    max_deliveries: int | None
    result_expires: float | timedelta | None
    shadow: str | None


class CallOptions(RetryOptions, total=False):
    """What `apply_async` takes besides args, kwargs, task_id, link, link_error."""

    unique: bool | None
    unique_key: str | Iterable[str] | Callable[..., Any] | None
    unique_for: float | timedelta | None
    on_conflict: Literal["return", "skip", "replace", "raise"] | None
    debounce: float | timedelta | None
    debounce_max: float | timedelta | None
    countdown: float | timedelta | None
    eta: datetime | str | None
    # Set by workflows and retries.
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    group_index: int | None
    retries: int
    replaced_task_nesting: int
    stamped_headers: Iterable[str] | None
    stamps: Mapping[str, Any] | None
    immutable: bool | None
    reply_to: str | None
    origin: str | None
    # A message server's, kept in `request.properties` or without effect.
    correlation_id: str | None
    app_id: str | None
    user_id: str | None
    message_id: str | None
    type: str | None
    timestamp: Any
    expiration: Any
    exchange: Any
    exchange_type: str | None
    routing_key: str | None
    route_name: str | None
    router: Any
    connection: Any
    publisher: Any
    producer: Any
    compression: str | None
    mandatory: bool
    immediate: bool
    delivery_mode: Any
    timeout: float | None
    confirm_timeout: float | None
    declare: Any
    task_type: Any
    result_cls: Any
    utc: bool | None


class TaskOptions(TypedDict, total=False):
    """What `app.task` takes besides `bind`, `base`, and those that make another type of it."""

    name: str | None
    typing: bool | None
    max_retries: int | None
    default_retry_delay: float
    autoretry_for: Iterable[type[BaseException]]
    dont_autoretry_for: Iterable[type[BaseException]]
    retry_kwargs: Mapping[str, Any]
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    throws: type[BaseException] | Iterable[type[BaseException]]
    acks_late: bool | None
    acks_on_failure_or_timeout: bool | None
    acks_on_failure: bool | None
    acks_on_timeout: bool | None
    reject_on_worker_lost: bool | None
    retry_on_worker_lost: bool | None
    max_deliveries: int | None
    ignore_result: bool | None
    store_errors_even_if_ignored: bool | None
    store_eager_result: bool | None
    result_expires: float | timedelta | None
    track_started: bool | None
    rate_limit: RateLimit
    rate_limit_key: Callable[..., Any] | str | None
    max_concurrency: MaxConcurrency
    concurrency_key: Callable[..., Any] | str | None
    time_limit: float | None
    soft_time_limit: float | None
    expires: float | timedelta | datetime | None
    unique: bool | None
    unique_key: str | Iterable[str] | Callable[..., Any] | None
    unique_for: float | timedelta | None
    on_conflict: Literal["return", "skip", "replace", "raise"] | None
    debounce: float | timedelta | None
    debounce_max: float | timedelta | None
    priority: int | None
    queue: Any
    exchange: Any
    exchange_type: str | None
    routing_key: str | None
    delivery_mode: Any
    serializer: str | None
    compression: str | None
    backend: Any
    trail: bool
    send_events: bool
    resultrepr_maxsize: int
    shadow_name: Callable[..., str | None] | None
    pydantic: bool
    pydantic_strict: bool | None
    pydantic_context: Mapping[str, Any] | None
    pydantic_dump_kwargs: Mapping[str, Any] | None
    sensitive: str | Iterable[str]
    abstract: bool
    shared: bool
    lazy: bool
    filter: Callable[..., Any] | None
    Strategy: Any
    Request: Any
    before_start: Callable[..., Any]
    on_success: Callable[..., Any]
    on_failure: Callable[..., Any]
    on_retry: Callable[..., Any]
    after_return: Callable[..., Any]


CALL_OPTIONS: Final = frozenset(RetryOptions.__annotations__) | frozenset(
    CallOptions.__annotations__
)
TASK_OPTIONS: Final = frozenset(TaskOptions.__annotations__) | {"flush_every", "flush_interval"}
UNIQUE_OPTIONS: Final = frozenset(
    {"unique", "unique_key", "unique_for", "on_conflict", "debounce", "debounce_max"}
)

# What Celery has and liteq does not need: accepted, and said once, with the reason.
_NO_EXCHANGES: Final = "there are no exchanges, a message goes to a queue by its name"
_NO_CONNECTIONS: Final = "the store minds its own connections"
_NO_CLASSES: Final = "the worker's parts cannot be replaced by class"
_NO_ROUTER: Final = "only the app's task_routes are asked"
_PLAIN_BODIES: Final = "bodies are small and not compressed"

WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    "compression": _PLAIN_BODIES,
    "exchange": _NO_EXCHANGES,
    "exchange_type": _NO_EXCHANGES,
    "delivery_mode": "every message is kept on disk",
    "mandatory": _NO_EXCHANGES,
    "immediate": _NO_EXCHANGES,
    "declare": _NO_EXCHANGES,
    "connection": _NO_CONNECTIONS,
    "publisher": _NO_CONNECTIONS,
    "producer": _NO_CONNECTIONS,
    "timeout": _NO_CONNECTIONS,
    "confirm_timeout": _NO_CONNECTIONS,
    "router": _NO_ROUTER,
    "route_name": _NO_ROUTER,
    "task_type": _NO_ROUTER,
    "expiration": "give expires",
    "utc": "a time without a zone is read in the app's timezone",
}
TASK_WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    "compression": _PLAIN_BODIES,
    "exchange": _NO_EXCHANGES,
    "exchange_type": _NO_EXCHANGES,
    "delivery_mode": "every message is kept on disk",
    "backend": "results are kept in the store, beside the messages",
    "send_events": "events of all tasks are sent, while somebody listens",
    "resultrepr_maxsize": "results are not logged",
    "Strategy": _NO_CLASSES,
    "Request": _NO_CLASSES,
    "acks_on_timeout": "a call that its time limit ended has failed",
    "retry_on_worker_lost": "a call whose process died is started again, max_deliveries times",
}

# What nobody means who has misspelt something: set by liteq, or without effect.
_NOT_MEANT: Final = (
    WITHOUT_EFFECT.keys()
    | TASK_WITHOUT_EFFECT.keys()
    | {"root_id", "parent_id", "group_id", "group_index", "retries", "replaced_task_nesting"}
    | {"origin"}
    | {"correlation_id", "app_id", "user_id", "message_id", "timestamp", "result_cls"}
)

# The words of Huey, Dramatiq and RQ, each with what it is here, of a call or of a task.
_ELSEWHERE: Final[Mapping[str, tuple[str, ...]]] = {
    "delay": ("countdown",),
    "max_age": ("expires",),
    "ttl": ("expires",),
    "job_id": ("task_id",),
    "job_timeout": ("time_limit",),
    "timeout": ("time_limit",),
    "result_ttl": ("result_expires",),
    "failure_ttl": ("result_expires",),
    "queue_name": ("queue",),
    "at_front": ("priority",),
    "meta": ("headers",),
    "on_success": ("link",),
    "on_failure": ("link_error",),
    "actor_name": ("name",),
    "context": ("bind",),
    "retries": ("max_retries",),
    "retry_delay": ("default_retry_delay",),
    "retry_when": ("autoretry_for",),
    "min_backoff": ("retry_backoff",),
    "max_backoff": ("retry_backoff_max",),
    "store_results": ("ignore_result",),
    "retry": ("max_retries",),
}

# And those that are no option here.
_OTHERWISE: Final[Mapping[str, str]] = {
    "depends_on": "send both as one workflow, a.s() | b.si()",
    "pipe_ignore": "a call that takes no result is task.si(…)",
    "repeat": "it is a periodic task, or one that sends itself with a countdown",
}


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise `TypeError` for the first name that is not known, suggesting the right one."""
    known = frozenset(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{where} has no option {name!r}{_hint(name, known, where)}")


def _hint(name: str, known: frozenset[str], where: str) -> str:
    """Return what to write for an option that does not exist; "" if nothing comes near."""
    meant = (*_ELSEWHERE.get(name, ()), name)
    near = [option for option in meant if option in known]
    if not near:
        for option in meant:
            if where == "a call" and option in TASK_OPTIONS:
                return f": it is an option of the task, @app.task({option}=…)"
            if where == "a task" and option in CALL_OPTIONS - _NOT_MEANT | {"task_id"}:
                return f": it is an option of a call, apply_async(…, {option}=…)"
        if name in _OTHERWISE:
            return f": {_OTHERWISE[name]}"
        import difflib  # late: 5 ms, and only an error needs it

        near = difflib.get_close_matches(name, sorted(known - _NOT_MEANT), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def named(options: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Return the options of a call, with those that have a parameter of their own."""
    return {**options, **{name: value for name, value in own.items() if value is not None}}


def due_at(
    countdown: float | timedelta | None,
    eta: datetime | str | None,
    now: float,
    zone: tzinfo | None,
) -> float | None:
    """Return when a call may start, in Unix seconds; None for now.

    A countdown wins over an ETA; one that is not above zero is now, as in Celery. What it
    makes counts `FromNow`. Raises `ValueError` for NaN, infinity, and a time beyond the year
    9999.
    """
    if countdown:
        seconds = checked_seconds("countdown", countdown)
        return _from_now("countdown", countdown, now, seconds) if seconds > 0 else None
    if eta is not None:
        return _in_range("eta", eta, _moment("eta", eta, zone))
    return None


def expires_at(
    expires: float | timedelta | datetime | str | None, now: float, zone: tzinfo | None
) -> float | None:
    """Return when a call expires, in Unix seconds: so many seconds `FromNow`, or at a time."""
    if expires is None:
        return None
    if isinstance(expires, (datetime, str)):
        return _in_range("expires", expires, _moment("expires", expires, zone))
    return _from_now("expires", expires, now, checked_seconds("expires", expires))


def checked_priority(priority: Any) -> int:
    """Return a priority from 0 to 9 (9 runs first). Raises `ValueError` for another."""
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(
            f"priority must be an integer from 0 to 9 (9 runs first), not {priority!r}"
        )
    if not 0 <= priority <= 9:
        raise ValueError(f"priority {priority} is not between 0 and 9 (9 runs first)")
    return priority


def checked_limits(hard: Any, soft: Any) -> tuple[float | None, float | None]:
    """Return the hard and the soft time limit in seconds; zero means none.

    Raises `ValueError` if the soft one is the longer.
    """
    hard = _limit("time_limit", hard)
    soft = _limit("soft_time_limit", soft)
    if hard is not None and soft is not None and soft > hard:
        raise ValueError(f"soft_time_limit {soft:g} is longer than time_limit {hard:g}")
    return hard, soft


def checked_seconds(name: str, given: Any) -> float:
    """Return a duration as seconds. Raises `TypeError`, or `ValueError` for NaN and
    infinity."""
    if isinstance(given, timedelta):
        return given.total_seconds()
    if isinstance(given, bool):
        raise TypeError(f"{name} must be a number of seconds, not {given!r}")
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number of seconds, not {given!r}") from None
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ValueError(f"{name} must be a finite number of seconds, not {given!r}")
    return seconds


def checked_count(name: str, given: Any, least: int = 0, of: str = "") -> int:
    """Return a count that every store holds. Raises `TypeError` for what is no whole number,
    `ValueError` for one below the least, or beyond 2**31 - 1."""
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{name} must be a whole number{of}, not {given!r}")
    if not least <= given <= _MOST:
        raise ValueError(f"{name} {given} is not between {least} and {_MOST}")
    return given


def checked_deliveries(given: Any) -> int | None:
    """Return how often a call may be started in all; None leaves that to the store. Raises
    as `checked_count()` does."""
    return None if given is None else checked_count("max_deliveries", given, 1, " of starts")


def _limit(name: str, given: Any) -> float | None:
    if not given:
        return None
    seconds = checked_seconds(name, given)
    if seconds <= 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {given!r}")
    return seconds


def _moment(name: str, given: datetime | str, zone: tzinfo | None) -> float:
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            raise ValueError(f"{name} {given!r} is not an ISO 8601 date and time") from None
    if not isinstance(given, datetime):
        raise TypeError(f"{name} must be a datetime or an ISO 8601 text, not {given!r}")
    if given.tzinfo is None and zone is not None:
        given = given.replace(tzinfo=zone)
    return given.timestamp()  # of a naive one: in the machine's own zone


def _from_now(name: str, given: Any, now: float, seconds: float) -> FromNow:
    return FromNow(_in_range(name, given, now + seconds), seconds)


def _in_range(name: str, given: Any, moment: float) -> float:
    if not 0 <= moment < MAX_TIME:
        raise ValueError(f"{name} {given!r} lies outside of the years 1970 to 9999")
    return moment
