"""Settings: what may be configured, where each value comes from, and what it must be.

`SETTINGS` is the one table of names, defaults and checks; all of Celery's names are in
it, so that a configuration moves unchanged. `Settings` puts the layers together when a
value is first read, the strongest first:

1. options of the command line (`override()`)
2. the environment: LITEQ_<NAME>, then Celery's CELERY_BROKER_URL and its like
3. what code assigned, `app.conf.x = …` and the arguments of the app
4. the object given to `config_from_object()`
5. `[tool.liteq]` in the nearest pyproject.toml, or a liteq.toml
6. `add_defaults()`, then the table

A name that is not in the table is kept, with a `ConfigWarning` that suggests the right one.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import timedelta, tzinfo
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final, Literal, TypeAlias

from liteq.exceptions import ConfigWarning, ImproperlyConfigured
from liteq.redaction import HIDDEN, is_secret_setting, mask_url

__all__ = ["SETTINGS", "Queue", "Setting", "Settings", "mask_url", "outside", "project_options"]

logger = logging.getLogger("liteq.config")

Check: TypeAlias = Callable[[Any], Any]


class Queue:
    """A queue for `task_queues`, written as kombu's is.

    `max_length`: how many messages may wait in it; a producer with more gets `QueueFull`.
    The exchange, the routing key and whatever else kombu accepts are kept to be read, and
    ignored: a liteq queue needs no declaration.
    """

    __slots__ = ("exchange", "max_length", "name", "options", "routing_key")

    def __init__(
        self,
        name: str,
        exchange: Any = None,
        routing_key: str = "",
        *,
        max_length: Any = None,
        **options: Any,
    ) -> None:
        if not name:
            raise ImproperlyConfigured("a queue needs a name")
        if max_length is not None and (
            isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1
        ):
            raise ImproperlyConfigured(
                f"the max_length of the queue {name!r} is how many messages may wait in it: "
                f"a whole number above 0, not {max_length!r}"
            )
        self.name = name
        self.max_length: int | None = max_length
        self.exchange = exchange
        self.routing_key = routing_key
        self.options = options

    def __eq__(self, other: object) -> bool:
        return self.name == other.name if isinstance(other, Queue) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"


# What a value may be. A check returns the value to keep, or raises `_Unfit` saying what was
# expected. Text is understood everywhere, since the environment has nothing else.


class _Unfit(Exception):
    """What a setting must be, said of a value that is not."""


def _any(value: Any) -> Any:
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise _Unfit("must be true or false")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit("must be text")
    return value


def _integer(least: int = 0) -> Check:
    expected = f"must be a whole number of at least {least}"

    def check(value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            raise _Unfit(expected) from None
        if isinstance(value, bool) or number < least:
            raise _Unfit(expected)
        if not isinstance(value, str) and number != value:
            raise _Unfit(expected)
        return number

    return check


def _seconds(value: Any) -> float:
    """A duration: a number of seconds, or a timedelta."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    expected = "must be a number of seconds (or a timedelta), 0 or more"
    if isinstance(value, bool):
        raise _Unfit(expected)
    if not isinstance(value, int | float):
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise _Unfit(expected) from None
    if not value >= 0:  # nan is refused too
        raise _Unfit(expected)
    seconds: float = value
    return seconds


def _choice(*words: str) -> Check:
    def check(value: Any) -> str:
        if value not in words:
            raise _Unfit(f"must be one of {', '.join(words)}")
        return str(value)

    return check


def _mapping(value: Any) -> Any:
    if isinstance(value, str):
        import json  # late: only for settings in the environment

        try:
            value = json.loads(value)
        except ValueError:
            raise _Unfit("must be a dict (in the environment: a JSON object)") from None
    if not isinstance(value, Mapping):
        raise _Unfit("must be a dict")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise _Unfit("must be a list of names")
    names = tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise _Unfit("must be a list of names")
    return names


def _keys(value: Any) -> tuple[str, ...]:
    """Secret keys, in the environment or a file with commas or line ends between them."""
    if isinstance(value, str):
        value = value.replace("\n", ",")
    keys = tuple(dict.fromkeys(_names(value)))
    if any(len(key) < _SHORTEST_KEY for key in keys):
        raise _Unfit(
            f"must be keys of at least {_SHORTEST_KEY} characters: make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return keys


_SHORTEST_KEY: Final = 16


def _address(value: Any) -> str:
    return (
        str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    )


def _url(value: Any) -> Any:
    """One URL, or a list of them (for fail-over), or what an app can make of a path."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple) and all(isinstance(url, str) for url in value):
        return value
    raise _Unfit("must be a URL, or a list of URLs")


def _zone(value: Any) -> Any:
    if isinstance(value, tzinfo) or value == "UTC":
        return value
    if isinstance(value, str):
        from zoneinfo import ZoneInfo  # late: 3 ms that only other zones than UTC pay

        try:
            ZoneInfo(value)
        except (ValueError, OSError, LookupError):
            raise _Unfit(
                "must be a time zone's name, as in Europe/Berlin (install the package "
                "tzdata if this machine knows none)"
            ) from None
        return value
    raise _Unfit("must be a time zone's name or a tzinfo")


def _queues(value: Any) -> tuple[Queue, ...]:
    """Names, `Queue`s of liteq or kombu, or a dict of options by name."""
    if isinstance(value, str):
        value = _names(value)
    if isinstance(value, Mapping):
        return tuple(_queue(name, options) for name, options in value.items())
    if not isinstance(value, Iterable):
        raise _Unfit("must be a list of queues or a dict")
    return tuple(_queue(queue, None) for queue in value)


def _queue(queue: Any, options: Any) -> Queue:
    if isinstance(queue, Queue):
        return queue
    if isinstance(queue, str):
        known = dict(options) if isinstance(options, Mapping) else {}
        known.pop("name", None)
        return Queue(queue, **known)
    if isinstance(name := getattr(queue, "name", None), str):  # kombu's
        key = getattr(queue, "routing_key", "") or ""
        most = getattr(queue, "max_length", None)
        return Queue(name, getattr(queue, "exchange", None), key, max_length=most)
    raise _Unfit(f"must hold names or Queue objects, not {queue!r}")


def _level(value: Any) -> Any:
    known = logging.getLevelNamesMapping()
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.upper() in known:
        return value.upper()
    raise _Unfit(f"must be one of {', '.join(sorted(known))}, or a number")


def _concurrency(value: Any) -> int | None:
    return None if value in ("auto", 0, "0") else int(_integer(1)(value))


def _remote(value: Any) -> bool | str:
    if isinstance(value, str) and value.strip().lower().replace("_", "-") == "read-only":
        return "read-only"
    try:
        return _flag(value)
    except _Unfit:
        raise _Unfit('must be true, false or "read-only"') from None


def _secrets(value: Any) -> Any:
    """Texts of some length: a short secret is soon guessed."""
    given = [value] if isinstance(value, str | bytes) else value
    if not isinstance(given, list | tuple) or not all(
        isinstance(one, str | bytes) and len(one) >= _LEAST_SECRET for one in given
    ):
        raise _Unfit(f"must be a text of {_LEAST_SECRET} characters or more, or a list of such")
    return value


def _rate(value: Any) -> Any:
    """Checked where it is used: a number per second, or "10/s", "10/m", "10/h"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Unfit('must be a number per second, or text like "10/m"')
    return value


class Setting:
    """One row of the table.

    `kind` is "used", or "accepted": Celery's, known, and without effect here. `nullable`
    lets None mean what `doc` says it means.
    """

    __slots__ = ("check", "default", "doc", "kind", "name", "nullable")

    def __init__(
        self,
        name: str,
        default: Any,
        check: Check,
        doc: str,
        kind: Literal["used", "accepted"] = "used",
        *,
        nullable: bool = False,
    ) -> None:
        self.name = name
        self.default = default
        self.check = check
        self.doc = doc
        self.kind = kind
        self.nullable = nullable


def _used(name: str, default: Any, check: Check, doc: str, *, null: bool = False) -> Setting:
    return Setting(name, default, check, doc, nullable=null or default is None)


def _accepted(doc: str, **defaults: Any) -> list[Setting]:
    """Return rows for Celery's settings that liteq knows and has no use for."""
    return [
        Setting(name, default, _any, doc, "accepted", nullable=True)
        for name, default in defaults.items()
    ]


_LEAST_SECRET: Final = 16
_NO_AMQP: Final = "There are no exchanges: a message goes to a queue by its name."
_NO_EVENTS: Final = "Events are kept in the store, the last 10,000 for a minute."
_NO_BACKEND: Final = "Results are kept in the broker's own store."
_NO_SIGNING: Final = "Messages are signed with security_keys, not with certificates."
_NO_CLASSES: Final = "The worker's parts cannot be replaced by class."

# fmt: off
_ROWS: Final[tuple[Setting, ...]] = (
    # General
    _used("accept_content", ("json",), _names, "Formats a worker or reader will decode."),
    _used("result_accept_content", None, _names, "The same for results; None: as above."),
    _used("enable_utc", True, _flag, "False: the zone, where none is set, is the machine's."),
    _used("timezone", "UTC", _zone, "Zone of naive datetimes and schedules.", null=True),
    _used("imports", (), _names, "Modules that a worker imports at its start."),
    _used("include", (), _names, "More such modules, added to imports."),
    # The store
    _used("broker_url", None, _url, "Where the store is; None: an SQLite file beside the app."),
    _used("broker_read_url", None, _url, "Celery's: the worker's URL, if another."),
    _used("broker_write_url", None, _url, "Celery's: the producers' URL, if another."),
    _used(
        "broker_transport_options",
        {},
        _mapping,
        'Options of the store: durability "full" or "normal" (SQLite), lease_timeout …',
    ),
    _used("broker_use_ssl", None, _any, "TLS options for Redis."),
    _used("broker_connection_timeout", 4.0, _seconds,
          "Limit for connecting to a server.", null=True),
    _used("broker_connection_retry", True, _flag, "Keep trying when the server is lost."),
    _used("broker_connection_retry_on_startup", None, _flag, "The same at the worker's start."),
    _used("broker_connection_max_retries", 100, _integer(),
          "Then give up; None: never.", null=True),
    *_accepted(
        "Connections are per thread and need no pool, heartbeat or login method.",
        broker_pool_limit=10,
        broker_pool_acquire_timeout=None,
        broker_heartbeat=120,
        broker_heartbeat_checkrate=3.0,
        broker_login_method=None,
        broker_failover_strategy=None,
        broker_channel_error_retry=False,
        broker_native_delayed_delivery_queue_type="quorum",
        broker_transport=None,
        broker_host=None,
        broker_port=None,
        broker_user=None,
        broker_password=None,
        broker_vhost=None,
    ),
    # Tasks
    _used("task_always_eager", False, _flag, "Run tasks in place when they are called."),
    _used("task_eager_propagates", False, _flag, "Raise what an eager task raised."),
    _used("task_store_eager_result", False, _flag, "Keep results of eager tasks too."),
    _used("task_serializer", "json", _text, "Format of arguments."),
    _used("task_ignore_result", False, _flag, "Keep no results, but where a task says so."),
    _used("task_store_errors_even_if_ignored", False, _flag, "Keep errors all the same."),
    _used("task_track_started", False, _flag, "Celery's: show STARTED. liteq always knows."),
    _used("task_acks_late", True, _flag, "False: never start a message twice (at most once)."),
    _used("task_acks_on_failure_or_timeout", True, _flag,
          "False: a message whose task failed is kept as a dead letter."),
    _used("task_acks_on_failure", None, _flag, "The same, before the other."),
    *_accepted("A call that its time limit ended has failed.", task_acks_on_timeout=None),
    _used("task_reject_on_worker_lost", None, _flag,
          "Deliver again if a process died; False: fail."),
    *_accepted(
        "A call whose process died is started again, task_max_deliveries times in all.",
        task_retry_on_worker_lost=False,
    ),
    _used("task_time_limit", None, _seconds, "Hard limit: the task's process is killed."),
    _used("task_soft_time_limit", None, _seconds, "Raise SoftTimeLimitExceeded in the task."),
    _used("task_default_rate_limit", None, _rate,
          'Rate limit of tasks that name none: "10/m".'),
    _used("task_default_priority", None, _integer(), "0 to 9; 9 is first. None: 0."),
    _used("task_inherit_parent_priority", False, _flag, "A task's own calls get its priority."),
    _used("task_annotations", None, _any, "Change attributes of tasks: {name or *: {…}}."),
    _used("task_publish_retry", True, _flag, "Try again when the store cannot be reached."),
    _used(
        "task_publish_retry_policy",
        {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1},
        _mapping,
        "How often, and with which pauses (seconds).",
    ),
    _used("task_max_body_size", 1_048_576, _integer(1),
          "Largest arguments or result, in bytes."),
    _used("task_max_deliveries", 3, _integer(1),
          "Starts of a message whose process dies each time."),
    _used("task_max_workflow_size", 1_000_000, _integer(1),
          "Most calls that a workflow may be sent with."),
    _used("task_unknown_expires", 86_400.0, _seconds,
          "How long a task nobody knows is kept waiting."),
    _used("task_allow_error_cb_on_chord_header", False, _flag,
          "Errbacks of a chord's body on its header."),
    _used("strict_typing", True, _flag,
          "Check arguments against the task's signature at the call."),
    *_accepted(
        "Message bodies are small and not compressed.",
        task_compression=None,
        result_compression=None,
    ),
    *_accepted("Tracebacks travel as text.", task_remote_tracebacks=False),
    *_accepted("There is one message format, with a version.", task_protocol=2),
    *_accepted("Arguments are not logged.", task_repr_maxlevels=3),
    _used("task_send_sent_event", False, _flag,
          "Callers send task-sent events, while somebody listens."),
    # Routing
    _used("task_default_queue", "default", _text, "Queue of tasks that name none."),
    _used("task_queues", None, _queues, "The queues: names, Queue objects or a dict."),
    _used("task_routes", None, _any,
          "Queue by task: a dict (globs allowed), functions, a list."),
    _used("task_queue_max_length", None, _integer(1),
          "How many messages may wait in a queue without a max_length.", null=True),
    _used("task_create_missing_queues", True, _flag,
          "False: a queue not in task_queues is an error."),
    *_accepted(
        _NO_AMQP,
        task_default_exchange=None,
        task_default_exchange_type="direct",
        task_default_routing_key=None,
        task_default_delivery_mode=2,
        task_default_queue_type="classic",
        task_create_missing_queue_type="classic",
        task_create_missing_queue_exchange_type=None,
        task_queue_ha_policy=None,
        worker_direct=False,
        worker_detect_quorum_queues=True,
    ),
    *_accepted("Priorities are always 0 to 9.", task_queue_max_priority=None),
    # Results
    _used("result_backend", None, _url,
          "disabled:// keeps no results; else the broker's own store."),
    _used("result_expires", 86_400.0, _seconds,
          "How long results are kept; 0 or None: for ever.", null=True),
    _used("result_extended", False, _flag,
          "Celery's: name and arguments in results. liteq has them."),
    _used("result_serializer", "json", _text, "Format of results."),
    _used("result_chord_join_timeout", 3.0, _seconds,
          "Celery's: a chord here never waits by polling."),
    *_accepted(
        _NO_BACKEND,
        result_persistent=None,
        result_exchange="celeryresults",
        result_exchange_type="direct",
        result_backend_transport_options={},
        result_backend_thread_safe=False,
        result_backend_always_retry=False,
        result_backend_max_retries=None,
        result_backend_base_sleep_between_retries_ms=10,
        result_backend_max_sleep_between_retries_ms=10_000,
        result_cache_max=-1,
        result_chord_retry_interval=1.0,
        result_chord_ordered=True,
        result_chord_expires=None,
        result_failure_expires=None,
        override_backends={},
        cache_backend=None,
        cache_backend_options={},
        database_engine_options=None,
        database_short_lived_sessions=False,
        database_table_names=None,
        database_table_schemas=None,
        database_create_tables_at_setup=True,
        redis_db=None,
        redis_host=None,
        redis_port=None,
        redis_username=None,
        redis_password=None,
        redis_max_connections=None,
        redis_socket_timeout=120.0,
        redis_socket_connect_timeout=None,
        redis_socket_keepalive=False,
        redis_retry_on_timeout=False,
        redis_backend_use_ssl=None,
        redis_backend_health_check_interval=None,
        redis_client_name=None,
    ),
    # Worker
    _used("worker_concurrency", None, _concurrency, "Tasks at once; None: the number of CPUs."),
    _used("worker_pool", "prefork", _text, "prefork, threads, asyncio or solo."),
    _used("worker_pool_start_method", None, _choice("fork", "spawn"),
          "How children start; None: fork."),
    _used("worker_max_tasks_per_child", None, _integer(1),
          "Replace a child after so many tasks."),
    _used("worker_max_memory_per_child", None, _integer(1),
          "Replace a child above so many KiB."),
    _used("worker_shutdown_timeout", 25.0, _seconds,
          "Seconds running tasks get to finish at a stop."),
    _used("worker_soft_shutdown_timeout", 0.0, _seconds, "Celery's name for more of the same."),
    _used("worker_priority_ageing", None, _seconds,
          "Seconds of waiting that are worth one priority; None: off.", null=True),
    _used("worker_lease_timeout", 60.0, _seconds,
          "A worker silent for so long is given up for dead."),
    _used("worker_max_lookahead", 64, _integer(1),
          "Most messages waiting in a child, while tasks are tiny."),
    _used("worker_disable_rate_limits", False, _flag, "Ignore the rate limits of tasks."),
    _used("worker_enable_remote_control", True, _remote,
          'Obey commands of other processes; "read-only": only those that look.'),
    _used("control_secret", None, _secrets,
          "Commands must be signed with this; of several, the first signs."),
    _used("control_queue_ttl", 300.0, _seconds, "Seconds a command waits for its worker."),
    _used("worker_autoscale_keepalive", 30.0, _seconds,
          "Seconds until --autoscale takes an idle child away."),
    _used("worker_send_task_events", True, _flag,
          "Send events of tasks and workers while somebody listens."),
    _used("worker_log_level", "INFO", _level, "Least severity that the command line logs."),
    _used("worker_log_format", "text", _text,
          "text, json, or a %-format for the logging module."),
    _used("worker_task_log_format", None, _text,
          "A %-format for the loggers of tasks; None: as above."),
    _used("task_sensitive_names", (), _names,
          "More names of parameters and keys whose values are never shown."),
    _used("worker_log_datefmt", None, _text, "Format of times in the log."),
    _used("worker_task_log_datefmt", None, _text, "The same for the loggers of tasks."),
    _used("worker_log_color", None, _flag, "Colours in the log; None: on a terminal."),
    _used("worker_metrics_port", None, _address,
          'Serve this worker\'s figures for Prometheus there: a port, or "host:port".'),
    _used("worker_logfile", None, _text, "File that the log goes to; None: standard error."),
    _used("worker_pidfile", None, _text, "File that the worker writes its process id to."),
    _used("worker_uid", None, _any, "User that the worker runs as."),
    _used("worker_gid", None, _any, "Group that the worker runs as."),
    _used("worker_umask", None, _any, "File mode mask of the worker."),
    *_accepted("The pool reports a child that does not start.", worker_proc_alive_timeout=4.0),
    *_accepted(
        "Workers claim no more than they can start, and ETAs wait in the store.",
        worker_prefetch_multiplier=4,
        worker_disable_prefetch=False,
        worker_eta_task_limit=None,
        worker_enable_prefetch_count_reduction=True,
    ),
    *_accepted(
        "A message has one outcome, and revokes are kept in the store.",
        worker_deduplicate_successful_tasks=False,
        worker_state_db=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_lost_wait=10.0,
        worker_enable_soft_shutdown_on_idle=False,
        worker_timer_precision=1.0,
    ),
    *_accepted(
        "liteq leaves the root logger and the standard streams alone.",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_redirect_stdouts_level="WARNING",
    ),
    *_accepted(
        _NO_CLASSES,
        worker_agent=None,
        worker_autoscaler=None,
        worker_consumer=None,
        worker_timer=None,
        worker_executable=None,
        worker_pool_putlocks=True,
        worker_pool_restarts=False,
    ),
    *_accepted(
        _NO_EVENTS,
        event_queue_ttl=5.0,
        event_queue_expires=60.0,
        event_queue_prefix="celeryev",
        event_queue_durable=False,
        event_queue_exclusive=False,
        event_serializer="json",
        event_exchange="celeryev",
    ),
    *_accepted(
        "Commands go through the store.",
        control_queue_expires=10.0,
        control_queue_durable=False,
        control_queue_exclusive=False,
        control_exchange="celery",
    ),
    # Beat
    _used("beat_schedule", {}, _mapping, "Periodic tasks: {name: {task, schedule, args, …}}."),
    _used("beat_max_loop_interval", 0.0, _seconds,
          "Longest sleep of the beat; 0: its own choice."),
    _used("beat_cron_starting_deadline", None, _seconds,
          "Fire a missed entry if it is no later than this."),
    _used("beat_scheduler", None, _any, "A scheduler class of your own, or its name."),
    _used("beat_sync_every", 0, _integer(), "Runs after which a scheduler of your own syncs."),
    *_accepted(
        "The beat keeps its state in the store.",
        beat_schedule_filename="celerybeat-schedule",
        beat_enable_remote_control=False,
        beat_remote_control_max_tick_age=None,
        beat_logfile=None,
        beat_pidfile=None,
        beat_uid=None,
        beat_gid=None,
        beat_umask=None,
    ),
    # Security
    _used("security_keys", (), _keys,
          "Messages and results are signed with the first, and checked with all of them."),
    _used("security_accept_unsigned", False, _flag,
          "Also run what is not signed at all, while a store moves to signing."),
    *_accepted(
        _NO_SIGNING,
        security_key=None,
        security_key_password=None,
        security_certificate=None,
        security_cert_store=None,
        security_digest="sha256",
    ),
)
# fmt: on

SETTINGS: Final[Mapping[str, Setting]] = {row.name: row for row in _ROWS}


def _words(text: str) -> list[str]:
    return text.split()


# Names that Celery had before version 4, where it is not CELERY_ and the new name.
_OLD: Final[Mapping[str, str]] = {
    **{
        f"BROKER_{name}": f"broker_{name.lower()}"
        for name in _words(
            "URL READ_URL WRITE_URL TRANSPORT TRANSPORT_OPTIONS CONNECTION_TIMEOUT HOST PORT "
            "CONNECTION_RETRY CONNECTION_MAX_RETRIES FAILOVER_STRATEGY HEARTBEAT USER VHOST "
            "HEARTBEAT_CHECKRATE LOGIN_METHOD POOL_LIMIT USE_SSL PASSWORD"
        )
    },
    **{
        f"CELERYBEAT_{name}": f"beat_{name.lower()}"
        for name in _words("SCHEDULE SCHEDULER SCHEDULE_FILENAME SYNC_EVERY MAX_LOOP_INTERVAL")
    },
    "CELERYBEAT_LOG_FILE": "beat_logfile",
    "CELERYBEAT_PID_FILE": "beat_pidfile",
    **{
        f"CELERYD_{name}": f"worker_{name.lower()}"
        for name in _words(
            "AGENT AUTOSCALER CONCURRENCY CONSUMER EXECUTABLE HIJACK_ROOT_LOGGER LOG_COLOR "
            "LOG_FORMAT MAX_TASKS_PER_CHILD MAX_MEMORY_PER_CHILD POOL POOL_PUTLOCKS TIMER "
            "POOL_RESTARTS PREFETCH_MULTIPLIER PROC_ALIVE_TIMEOUT REDIRECT_STDOUTS STATE_DB "
            "REDIRECT_STDOUTS_LEVEL TASK_LOG_FORMAT TIMER_PRECISION UMASK UID GID"
        )
    },
    "CELERYD_LOG_FILE": "worker_logfile",
    "CELERYD_LOG_LEVEL": "worker_log_level",
    "CELERYD_PID_FILE": "worker_pidfile",
    "CELERYD_WORKER_LOST_WAIT": "worker_lost_wait",
    "CELERYD_TASK_TIME_LIMIT": "task_time_limit",
    "CELERYD_TASK_SOFT_TIME_LIMIT": "task_soft_time_limit",
    "CELERY_ACKS_LATE": "task_acks_late",
    "CELERY_ALWAYS_EAGER": "task_always_eager",
    "CELERY_ANNOTATIONS": "task_annotations",
    "CELERY_CREATE_MISSING_QUEUES": "task_create_missing_queues",
    "CELERY_DEFAULT_DELIVERY_MODE": "task_default_delivery_mode",
    "CELERY_DEFAULT_EXCHANGE": "task_default_exchange",
    "CELERY_DEFAULT_EXCHANGE_TYPE": "task_default_exchange_type",
    "CELERY_DEFAULT_QUEUE": "task_default_queue",
    "CELERY_DEFAULT_RATE_LIMIT": "task_default_rate_limit",
    "CELERY_DEFAULT_ROUTING_KEY": "task_default_routing_key",
    "CELERY_DISABLE_RATE_LIMITS": "worker_disable_rate_limits",
    "CELERY_EAGER_PROPAGATES": "task_eager_propagates",
    "CELERY_EAGER_PROPAGATES_EXCEPTIONS": "task_eager_propagates",
    "CELERY_ENABLE_REMOTE_CONTROL": "worker_enable_remote_control",
    "CELERY_IGNORE_RESULT": "task_ignore_result",
    "CELERY_MAX_CACHED_RESULTS": "result_cache_max",
    "CELERY_MESSAGE_COMPRESSION": "task_compression",
    "CELERY_QUEUES": "task_queues",
    "CELERY_RESULT_DB_SHORT_LIVED_SESSIONS": "database_short_lived_sessions",
    "CELERY_RESULT_DB_TABLENAMES": "database_table_names",
    "CELERY_RESULT_DBURI": "result_backend",
    "CELERY_RESULT_ENGINE_OPTIONS": "database_engine_options",
    "CELERY_ROUTES": "task_routes",
    "CELERY_SEND_EVENTS": "worker_send_task_events",
    "CELERY_SEND_TASK_SENT_EVENT": "task_send_sent_event",
    "CELERY_STORE_ERRORS_EVEN_IF_IGNORED": "task_store_errors_even_if_ignored",
    "CELERY_TASK_RESULT_EXPIRES": "result_expires",
    "CELERY_TRACK_STARTED": "task_track_started",
}

# Short names that LITEQ_… may also go by.
_SHORT: Final[Mapping[str, str]] = {
    "LITEQ_RESULT_URL": "result_backend",
    "LITEQ_EAGER": "task_always_eager",
    "LITEQ_CONCURRENCY": "worker_concurrency",
    "LITEQ_POOL": "worker_pool",
    "LITEQ_LOG_LEVEL": "worker_log_level",
    "LITEQ_LOG_FORMAT": "worker_log_format",
}
# The only ones that Celery itself reads from the environment.
_CELERY_ENVIRONMENT: Final = (
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
)
_PREFIXES: Final = ("CELERY_", "CELERYD_", "CELERYBEAT_", "LITEQ_")
_NOT_SETTINGS: Final = frozenset({"app"})  # in [tool.liteq] for the command line alone
_CODE: Final = "code"
_MISSING: Final = object()


class Settings(MutableMapping[str, Any]):
    """The settings of one app, by attribute or by item.

    Nothing is read before the first read access; what is assigned before is kept, and
    wins over the configuration object. `on_load(settings)` is called after each loading.
    `environ` and `directory` (where the search for a pyproject.toml starts) default to
    those of the process.

    Assigning raises `ImproperlyConfigured` for a value of the wrong type, and warns with
    `ConfigWarning` about a name that is not known or has no effect.
    """

    def __init__(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        directory: str | None = None,
        on_load: Callable[[Settings], object] | None = None,
    ) -> None:
        self._environ: Mapping[str, str] = os.environ if environ is None else environ
        self._directory = directory
        self._on_load = on_load
        self._options: dict[str, Any] = {}
        self._options_source = "command line"
        self._changes: dict[str, Any] = {}
        self._object: tuple[Any, bool, str | None] | None = None
        self._defaults: list[Mapping[str, Any] | Callable[[], Mapping[str, Any]]] = []
        self._values: dict[str, Any] | None = None  # None: to be loaded
        self._sources: dict[str, str] = {}
        self._warned: set[str] = set()
        for name, value in (changes or {}).items():
            self._change(name, value)

    # Reading and writing

    def __getattr__(self, name: str) -> Any:
        """Load, and find what `_show()` could not put where Python looks first."""
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as exc:
            raise AttributeError(str(exc.args[0])) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        elif hasattr(type(self), name):
            raise AttributeError(f"{name} is a method of Settings, not a setting")
        else:
            self._change(name, value)

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __getitem__(self, key: str) -> Any:
        values = self._loaded()
        if key in values:
            return values[key]
        name = _new_name(key)
        if name is not None and name in values:
            return values[name]
        raise KeyError(f"there is no setting {key!r}{_suggestion(key)}")

    def __setitem__(self, key: str, value: Any) -> None:
        self._change(key, value)

    def __delitem__(self, key: str) -> None:
        """Take back what code assigned; the value below shows again."""
        del self._changes[_new_name(key) or key]
        self._forget()

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        values = self._loaded()
        return key in values or _new_name(key) in values

    def __repr__(self) -> str:
        state = "not loaded" if self._values is None else f"{len(self._sources)} set"
        return f"<Settings: {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy what code assigned: the other process has an environment of its own."""
        return Settings, (self._changes,)

    # Layers

    def override(self, options: Mapping[str, Any], source: str = "command line") -> None:
        """Set what nothing else overrides: the options of the command line.

        Options that are None were not given and change nothing.
        """
        for key, value in options.items():
            if value is not None:
                name = _new_name(key) or key
                self._options[name] = _checked(name, value, source)
        self._options_source = source
        self._forget()

    def overrides(self) -> dict[str, Any]:
        """Return what `override()` has set, for another process of the same command."""
        return dict(self._options)

    @contextmanager
    def overridden(self, options: Mapping[str, Any], source: str) -> Iterator[None]:
        """Have these settings, None among their values, override all others for a time.

        Such times are nested: the one that began last ends first.
        """
        before = self._options, self._options_source
        checked = {_new_name(key) or key: value for key, value in options.items()}
        checked = {name: _checked(name, value, source) for name, value in checked.items()}
        self._say(_remarks(checked, checked, self._warned), source)
        self._options, self._options_source = {**self._options, **checked}, source
        self._forget()
        try:
            yield
        finally:
            self._options, self._options_source = before
            self._forget()

    def config_from_object(
        self,
        obj: Any,
        silent: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        force: bool = False,  # noqa: FBT001, FBT002
        namespace: str | None = None,
    ) -> bool:
        """Take settings from a module (or its name), an object, a class or a dict.

        It is read when a setting is first needed, or now with `force`. With a namespace
        only names with that prefix count, without it. `silent`: a module that does not
        exist holds no settings. Returns False if, with `force`, nothing was read.

        Reading raises `ImproperlyConfigured` for a value of the wrong type, and for old
        and new names side by side.
        """
        self._object = (obj, silent, namespace)
        self._forget()
        if force:
            return self._source_object() is not None and bool(self._loaded())
        return True

    def config_from_envvar(
        self,
        variable: str,
        silent: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        force: bool = False,  # noqa: FBT001, FBT002
    ) -> bool:
        """Take settings from the module that an environment variable names.

        Raises `ImproperlyConfigured` if it is not set, unless `silent`: then returns False.
        """
        module = self._environ.get(variable)
        if module:
            return self.config_from_object(module, silent=silent, force=force)
        if silent:
            return False
        raise ImproperlyConfigured(
            f"the environment variable {variable} is not set: it must name the module that "
            "holds the settings"
        )

    def config_from_cmdline(self, argv: Iterable[str], namespace: str = "celery") -> None:
        """Set from `key=value` words; `.key` is short for a setting of the namespace.

        A value is read as the setting's type. Raises `ImproperlyConfigured` for a word
        without `=`.
        """
        options: dict[str, Any] = {}
        for word in argv:
            key, equals, value = word.partition("=")
            if not equals:
                raise ImproperlyConfigured(f"{word!r} is no setting: write key=value")
            key = key.strip().replace("-", "_").replace(".", "_").strip("_")
            name = _new_name(key) or _new_name(f"{namespace}_{key}") or key
            options[name] = value.strip()
        self.override(options)

    def add_defaults(
        self, defaults: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    ) -> None:
        """Add settings that all but the built-in defaults override. A function is called
        when the settings are loaded. Of several, the last wins."""
        self._defaults.append(defaults)
        self._forget()

    # Celery's views

    @property
    def changes(self) -> dict[str, Any]:
        """What code assigned (a copy)."""
        return dict(self._changes)

    def source_of(self, key: str) -> str:
        """Say where a setting's value comes from, "default" if from nowhere."""
        self._loaded()
        return self._sources.get(_new_name(key) or key, "default")

    def value_set_for(self, key: str) -> bool:
        """Tell whether a setting has been given a value at all."""
        return self.source_of(key) != "default"

    def without_defaults(self) -> dict[str, Any]:
        """Return what has been set, without the defaults."""
        values = self._loaded()
        return {name: values[name] for name in values if name in self._sources}

    def find_value_for_key(self, name: str, namespace: str = "celery") -> Any:
        """Return a setting by the end of its name: `always_eager`, or with a namespace
        `("concurrency", "worker")`. Raises `KeyError` if there is none."""
        name = name.lower()
        spaces = (namespace.lower(), "task", "worker", "result", "broker", "beat")
        for key in (*(f"{space}_{name}" for space in spaces), name):
            if key in SETTINGS:
                return self[key]
        return self[name]

    def table(
        self,
        with_defaults: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        censored: bool = True,  # noqa: FBT001, FBT002
    ) -> dict[str, Any]:
        """Return the settings as a dict; `censored` hides passwords, keys and tokens."""
        values = dict(self._loaded()) if with_defaults else self.without_defaults()
        return (
            {key: _censored(key, value) for key, value in values.items()}
            if censored
            else values
        )

    def humanize(
        self,
        with_defaults: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
        censored: bool = True,  # noqa: FBT001, FBT002
    ) -> str:
        """Return the settings as text, one in a line."""
        table = self.table(with_defaults, censored)
        return "\n".join(f"{key}: {value!r}" for key, value in sorted(table.items()))

    # Loading

    def _change(self, key: str, value: Any) -> None:
        name = _new_name(key) or key
        value = _checked(name, value, _CODE)
        self._say(_remarks([name], {name: value}, self._warned), _CODE)
        self._changes[name] = value
        # Loaded settings are amended, not loaded anew: others may hold a mutable default.
        if self._values is not None and not self._stronger(name):
            self._values[name] = value
            self._sources[name] = _CODE
            self._show({name: value})

    def _stronger(self, name: str) -> bool:
        source = self._sources.get(name, "")
        return name in self._options or source.startswith("environment")

    def _show(self, values: Mapping[str, Any]) -> None:
        """Put values among the instance's own attributes: to read one there costs 30 ns,
        through `__getattr__` more than a microsecond, and every call of a task reads some."""
        for name, value in values.items():
            if not hasattr(type(self), name):
                self.__dict__[name] = value

    def _forget(self) -> None:
        """Have everything loaded anew at the next reading."""
        for name in self._values or ():
            self.__dict__.pop(name, None)
        self._values = None

    def _loaded(self) -> dict[str, Any]:
        values = self._values
        return self._load() if values is None else values

    def _load(self) -> dict[str, Any]:
        """Put the layers together, the weakest first.

        No lock: two threads that come here together make equal dicts, and a lock held
        over the import of a configuration module could meet the import lock.
        """
        values = {row.name: _fresh(row.default) for row in _ROWS}
        sources: dict[str, str] = {}
        for source, found in self._layers():
            layer = {name: _checked(name, value, source) for name, value in found.items()}
            if source is not _CODE:  # said already, when it was assigned
                self._say(_remarks(layer, layer, self._warned), source)
            for name in layer:
                if source.startswith("environment") and sources.get(name) == _CODE:
                    logger.info("%s from the %s overrides the value set in code", name, source)
                sources[name] = source
            values.update(layer)
        self._forget()
        self._values, self._sources = values, sources
        self._show(values)
        if self._on_load is not None:
            self._on_load(self)
        return values

    def _layers(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for defaults in self._defaults:
            mapping = defaults() if callable(defaults) else defaults
            yield "add_defaults()", {_new_name(key) or key: mapping[key] for key in mapping}
        options, path = project_options(self._directory)
        if path is not None:
            yield (
                path,
                {
                    _new_name(key.replace("-", "_")) or key: value
                    for key, value in options.items()
                    if key not in _NOT_SETTINGS
                },
            )
        if (found := self._source_object()) is not None:
            yield found
        yield _CODE, self._changes
        yield from _environment(self._environ)
        yield self._options_source, self._options

    def _source_object(self) -> tuple[str, Mapping[str, Any]] | None:
        if self._object is None:
            return None
        obj, silent, namespace = self._object
        source = f"configuration {obj!r}" if isinstance(obj, str) else "configuration object"
        if isinstance(obj, str):
            obj = _import(obj, silent=silent)
            if obj is None:
                return None
        if isinstance(obj, ModuleType):
            source = f"configuration {obj.__name__!r}"
        return source, _from_object(obj, namespace)

    def _say(self, remarks: list[str], source: str) -> None:
        for remark in remarks:
            warnings.warn(f"{remark} (from {source})", ConfigWarning, stacklevel=outside())


def _checked(name: str, value: Any, source: str) -> Any:
    """Return the value as the setting keeps it, or raise `ImproperlyConfigured`."""
    row = SETTINGS.get(name)
    if row is None or (value is None and row.nullable):
        return value
    if value == "" and row.nullable and source.startswith("environment"):
        return None  # an empty variable is how an environment says None
    try:
        return row.check(value)
    except _Unfit as exc:
        shown = _censored(name, value)
        raise ImproperlyConfigured(
            f"setting {name} = {shown!r} (from {source}): {exc}"
        ) from None


def _remarks(names: Iterable[str], values: Mapping[str, Any], warned: set[str]) -> list[str]:
    """Return what is to be said about these settings, each said once."""
    remarks = []
    useless: dict[str, list[str]] = {}
    for name in names:
        row = SETTINGS.get(name)
        if name in warned or (row and (row.kind == "used" or values[name] == row.default)):
            continue
        warned.add(name)
        if row is None:
            remarks.append(f"unknown setting {name!r}{_suggestion(name)}")
        else:
            useless.setdefault(row.doc, []).append(name)
    for doc, found in useless.items():
        remarks.append(f"no effect in liteq: {', '.join(found)}. {doc}")
    return remarks


def _suggestion(name: str) -> str:
    close = _close(name)
    return f": did you mean {close!r}?" if close else ""


def _close(name: str, cutoff: float = 0.7) -> str | None:
    import difflib  # late: only after a mistake

    found = difflib.get_close_matches(name.lower(), SETTINGS, 1, cutoff)
    return found[0] if found else None


def _new_name(key: str) -> str | None:
    """Return the name that a key has in the table, None if it is not there."""
    if key in SETTINGS:
        return key
    if key in _OLD:
        return _OLD[key]
    if key.isupper():
        for prefix in ("CELERY_", "LITEQ_"):
            if key.startswith(prefix) and (name := key[len(prefix) :].lower()) in SETTINGS:
                return name
    return None


def _fresh(default: Any) -> Any:
    """Return a default that its app may change without changing the table."""
    return dict(default) if isinstance(default, dict) else default


def outside() -> int:
    """Return the stack level of the first caller outside of liteq."""
    ours = (__name__.partition(".")[0], "collections", "_collections_abc")
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_globals.get("__name__", "").partition(".")[0] in ours
    ):
        level, frame = level + 1, frame.f_back
    return level


# Where settings come from


def _environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what the environment sets, one layer per variable, the weakest first.

    `LITEQ_BROKER_URL_FILE` names a file that holds the value (a Docker secret).
    """
    for variable in _CELERY_ENVIRONMENT:
        if value := environ.get(variable):
            yield f"environment ({variable})", {str(_new_name(variable)): value}
    # Sorted, so that the short names come in a fixed order; full names win over them.
    ours = sorted(v for v in environ if v.startswith("LITEQ_"))
    for variable in sorted(ours, key=lambda v: v not in _SHORT):
        name = _SHORT.get(variable) or _setting_of(variable)
        if name is not None:
            yield f"environment ({variable})", {name: environ[variable]}
        elif variable.endswith("_FILE") and (name := _setting_of(variable[:-5])):
            yield f"environment ({variable})", {name: _file(variable, environ[variable])}
        elif close := _close(variable[6:], 0.85):
            warnings.warn(
                f"unknown environment variable {variable}: did you mean LITEQ_{close.upper()}?",
                ConfigWarning,
                stacklevel=outside(),
            )


def _setting_of(variable: str) -> str | None:
    name = variable.removeprefix("LITEQ_").lower()
    return name if name in SETTINGS else None


def _file(variable: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeError) as exc:
        raise ImproperlyConfigured(f"{variable} = {path!r} cannot be read: {exc}") from exc


def project_options(directory: str | None = None) -> tuple[dict[str, Any], str | None]:
    """Return `[tool.liteq]` of the nearest pyproject.toml, or a liteq.toml, and its path.

    Looks in the directory (None: the current one) and upwards, and stops at the first
    file of either name. Nothing is parsed that does not mention liteq. Raises
    `ImproperlyConfigured` if the file is no valid TOML.
    """
    here = os.path.abspath(directory or os.curdir)
    while True:
        for file in ("liteq.toml", "pyproject.toml"):
            path = os.path.join(here, file)
            try:
                with open(path, "rb") as stream:
                    content = stream.read()
            except OSError:
                continue
            return _project_table(content, path)
        parent = os.path.dirname(here)
        if parent == here:
            return {}, None
        here = parent


def _project_table(content: bytes, path: str) -> tuple[dict[str, Any], str | None]:
    own = path.endswith("liteq.toml")
    if not own and b"liteq" not in content:
        return {}, None
    import tomllib  # late: only where there is something to read

    try:
        document = tomllib.loads(content.decode())
    except ValueError as exc:
        raise ImproperlyConfigured(f"{path} is no valid TOML: {exc}") from exc
    table = document if own else document.get("tool", {}).get("liteq")
    return (table, path) if isinstance(table, dict) else ({}, None)


def _import(name: str, *, silent: bool) -> Any:
    """Return the module or, for `module:attribute`, the object; None if it is not there
    and that is allowed. The current directory counts, as for `python -m`."""
    import importlib

    module, _, attribute = name.partition(":")
    before = list(sys.path)
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if not (module == missing or module.startswith(f"{missing}.")):
            raise  # it is there, and misses something itself
        if silent:
            return None
        raise ImproperlyConfigured(
            f"the configuration module {module!r} does not exist (looked in {here} and on "
            "the Python path)"
        ) from exc
    finally:
        if sys.path[:1] == [here] and before[:1] != [here]:
            sys.path.remove(here)
    for part in attribute.split(".") if attribute else ():
        found = getattr(found, part)
    return found


def _from_object(obj: Any, namespace: str | None) -> dict[str, Any]:
    """Return the settings in an object, under their names in the table."""
    if isinstance(obj, Mapping):
        items = dict(obj)
    else:
        items = {key: getattr(obj, key) for key in dir(obj) if not key.startswith("_")}
    if namespace:
        return _in_namespace(items, namespace)
    settings: dict[str, Any] = {}
    old: dict[str, str] = {}
    for key, value in items.items():
        name = _new_name(key)
        if name is None:
            if _looks_like_setting(key, value, certain=isinstance(obj, Mapping)):
                settings[key] = value
            continue
        settings[name] = value
        if key != name:
            old[key] = name
    new = [key for key in items if key in SETTINGS]
    if old and new:
        renames = "\n".join(f"  {key} -> {name}" for key, name in sorted(old.items()))
        raise ImproperlyConfigured(
            "the configuration mixes new names of settings "
            f"({', '.join(sorted(new)[:5])}{', …' if len(new) > 5 else ''}) with old ones. "
            f"Rename the old ones, or give config_from_object() a namespace:\n{renames}"
        )
    return settings


def _in_namespace(items: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    prefix = namespace.rstrip("_").upper() + "_"
    settings: dict[str, Any] = {}
    for key, value in items.items():
        if key.upper().startswith(prefix):
            name = key[len(prefix) :].lower()
            settings[name if name in SETTINGS else _OLD.get(key.upper(), name)] = value
    return settings


def _looks_like_setting(key: str, value: Any, *, certain: bool) -> bool:
    """Tell whether an unknown name was meant as a setting.

    In a dict it was. A module also holds imports, helpers and Django's own settings, so
    there a name must have Celery's prefix, or come close to a setting's.
    """
    if key.startswith(_PREFIXES):
        return True
    if certain:
        return not key.isupper()
    if isinstance(value, ModuleType | type | FunctionType | BuiltinFunctionType):
        return False
    return not key.isupper() and _close(key, 0.85) is not None


# What must not be shown


def _censored(key: Any, value: Any) -> Any:
    if is_secret_setting(key) and value not in (None, "", (), False):
        return HIDDEN
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Mapping):
        return {name: _censored(name, member) for name, member in value.items()}
    for kind in (list, tuple, set):
        if type(value) is kind:
            return kind(_censored("", member) for member in value)
    return value
