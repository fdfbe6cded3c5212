"""The table of settings: every name, its default, its check, and what it is for.

All of Celery's names are in it, so that a configuration moves unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from liteq.settingvalues import (
    Check,
    address,
    annotating,
    anything,
    choice,
    concurrency,
    encryption_keys,
    flag,
    integer,
    keys,
    level,
    mapping,
    names,
    pauses,
    queues,
    rate,
    remote,
    routes,
    seconds,
    secrets,
    text,
    url,
    zone,
)

__all__ = ["OLD_NAMES", "SETTINGS", "Setting", "close_name", "new_name"]


class Setting:
    """One row of the table.

    `kind` is "used", or "accepted": Celery's, known, and without effect here. `nullable`
    lets None mean what `doc` says it means. `expected` are the values of an accepted one
    that nothing is said about: what holds here, and Celery's default.
    """

    __slots__ = ("check", "default", "doc", "expected", "kind", "name", "nullable")

    def __init__(
        self,
        name: str,
        default: Any,
        check: Check,
        doc: str,
        kind: Literal["used", "accepted"] = "used",
        *,
        nullable: bool = False,
        of_celery: Any = None,
    ) -> None:
        self.name = name
        self.default = default
        self.check = check
        self.doc = doc
        self.kind = kind
        self.nullable = nullable
        self.expected = (default,) if of_celery is None else (default, of_celery)


def _used(name: str, default: Any, check: Check, doc: str, *, null: bool = False) -> Setting:
    return Setting(name, default, check, doc, nullable=null or default is None)


def _accepted(doc: str, *, of_celery: Any = None, **defaults: Any) -> list[Setting]:
    """Return rows for Celery's settings that liteq knows and has no use for. `of_celery` is
    Celery's default of them, where it is not what holds here."""
    return [
        Setting(name, default, anything, doc, "accepted", nullable=True, of_celery=of_celery)
        for name, default in defaults.items()
    ]


_NO_AMQP: Final = "There are no exchanges: a message goes to a queue by its name."
_NO_EVENTS: Final = "Events are kept in the store, the last 10,000 for a minute."
_NO_BACKEND: Final = "Results are kept in the broker's own store."
_NO_SIGNING: Final = "Messages are signed with security_keys, not with certificates."
_NO_CLASSES: Final = "The worker's parts cannot be replaced by class."

# fmt: off
_ROWS: Final[tuple[Setting, ...]] = (
    # General
    _used("accept_content", ("json",), names, "Formats a worker or reader will decode."),
    _used("result_accept_content", None, names, "The same for results; None: as above."),
    _used("enable_utc", True, flag, "False: without a timezone, the machine's is used."),
    _used("timezone", "UTC", zone, "Zone of naive datetimes and schedules.", null=True),
    _used("imports", (), names, "Modules that a worker imports at its start."),
    _used("include", (), names, "More such modules, added to imports."),
    # The store
    _used("broker_url", None, url, "Where the store is; None: an SQLite file beside the app."),
    _used(
        "broker_transport_options",
        {},
        mapping,
        'Options of the store: durability "full" or "normal" (SQLite), lease_timeout …',
    ),
    _used("broker_use_ssl", None, anything,
          "Speak TLS with Redis: True, or a dict of ssl_… options; as rediss:// does."),
    _used("broker_connection_timeout", None, seconds,
          "Seconds to wait for a connection; None: 3."),
    _used("broker_connection_retry", True, flag,
          "False: a worker that cannot reach the store ends, with exit code 6."),
    _used("broker_connection_retry_on_startup", None, flag,
          "The same before the first connection; None: as above."),
    _used("broker_connection_max_retries", None, integer(),
          "End after this many tries; None: no limit."),
    *_accepted(
        "A store is read and written at one URL.",
        broker_read_url=None,
        broker_write_url=None,
    ),
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
    _used("task_always_eager", False, flag, "Run tasks in place when they are called."),
    _used("task_eager_propagates", False, flag, "Raise what an eager task raised."),
    _used("task_store_eager_result", False, flag, "Keep results of eager tasks too."),
    _used("task_serializer", "json", text, "Format of arguments."),
    _used("task_ignore_result", False, flag, "Keep no results, unless a task says otherwise."),
    _used("task_store_errors_even_if_ignored", False, flag, "Keep errors even then."),
    _used("task_track_started", False, flag, "Celery's: show STARTED. liteq always knows."),
    _used("task_acks_late", True, flag,
          "False: at most once, so not again after its process has died."),
    _used("task_acks_on_failure_or_timeout", True, flag,
          "False: a message whose task failed is kept as a dead letter."),
    _used("task_acks_on_failure", None, flag, "The same; if set, it wins."),
    *_accepted("A call that its time limit ended has failed.", task_acks_on_timeout=None),
    _used("task_reject_on_worker_lost", None, flag,
          "Deliver again if a process died; False: fail."),
    *_accepted(
        "A call whose process died is started again, task_max_deliveries times in all.",
        task_retry_on_worker_lost=False,
    ),
    _used("task_time_limit", None, seconds,
          "Hard limit: the task's process is killed. 0 or None: none."),
    _used("task_soft_time_limit", None, seconds,
          "Raise SoftTimeLimitExceeded in the task. 0 or None: not at all."),
    _used("task_default_rate_limit", None, rate,
          'Rate limit of tasks that name none: "10/m".'),
    _used("task_default_priority", None, integer(0, 9), "0 to 9; 9 is first. None: 0."),
    _used("task_inherit_parent_priority", False, flag, "A task's own calls get its priority."),
    _used("task_annotations", None, annotating,
          "Change attributes of tasks: {name or *: {…}}."),
    _used("task_publish_retry", True, flag, "Try again when the store cannot be reached."),
    _used(
        "task_publish_retry_policy",
        {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1},
        pauses,
        "How often, and with which pauses (seconds).",
    ),
    _used("task_max_body_size", 1_048_576, integer(1),
          "Largest arguments or result, in bytes."),
    _used("task_max_deliveries", 3, integer(1),
          "How often a message is started if its process dies each time."),
    _used("task_max_workflow_size", 1_000_000, integer(1),
          "Most calls that a workflow may be sent with."),
    _used("task_unknown_expires", 86_400.0, seconds,
          "How long a call waits if no worker knows its task."),
    _used("task_allow_error_cb_on_chord_header", False, flag,
          "Also call a chord's errbacks for each failed member."),
    _used("strict_typing", True, flag,
          "Check arguments against the task's signature at the call."),
    *_accepted(
        "Message bodies are small and not compressed.",
        task_compression=None,
        result_compression=None,
    ),
    *_accepted("Tracebacks travel as text.", task_remote_tracebacks=False),
    *_accepted("There is one message format, with a version.", task_protocol=2),
    *_accepted("Arguments are not logged.", task_repr_maxlevels=3),
    _used("task_send_sent_event", False, flag,
          "Callers send task-sent events, while somebody listens."),
    # Routing
    _used("task_default_queue", "default", text, "Queue of tasks that name none."),
    _used("task_queues", None, queues, "The queues: names, Queue objects or a dict."),
    _used("task_routes", None, routes,
          "Queue by task: a dict (globs allowed), functions, a list."),
    _used("task_queue_max_length", None, integer(1),
          "How many messages may wait in a queue without a max_length.", null=True),
    _used("task_create_missing_queues", True, flag,
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
    _used("result_backend", None, url,
          "disabled:// keeps no results; else the broker's own store."),
    _used("result_expires", 86_400.0, seconds,
          "How long results are kept; 0 or None: for ever.", null=True),
    _used("result_serializer", "json", text, "Format of results."),
    *_accepted("A record always has the task's name and arguments.", result_extended=False),
    *_accepted("A chord waits in the store, and polls nothing.", result_chord_join_timeout=3.0),
    *_accepted(
        _NO_BACKEND,
        result_persistent=None,
        result_exchange="celeryresults",
        result_exchange_type="direct",
        result_backend_transport_options={},
        result_backend_thread_safe=False,
        result_backend_always_retry=False,
        result_backend_max_retries=float("inf"),
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
        database_url=None,
        database_engine_callback=None,
        database_engine_options={"pool_pre_ping": True, "pool_recycle": 3600},
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
        arangodb_backend_settings=None,
        azureblockblob_container_name="celery",
        azureblockblob_retry_initial_backoff_sec=2,
        azureblockblob_retry_increment_base=2,
        azureblockblob_retry_max_attempts=3,
        azureblockblob_base_path="",
        azureblockblob_connection_timeout=20,
        azureblockblob_read_timeout=120,
        cassandra_auth_kwargs=None,
        cassandra_auth_provider=None,
        cassandra_bundle_path=None,
        cassandra_entry_ttl=None,
        cassandra_keyspace=None,
        cassandra_options={},
        cassandra_port=None,
        cassandra_read_consistency=None,
        cassandra_servers=None,
        cassandra_table=None,
        cassandra_write_consistency=None,
        cosmosdbsql_database_name="celerydb",
        cosmosdbsql_collection_name="celerycol",
        cosmosdbsql_consistency_level="Session",
        cosmosdbsql_max_retry_attempts=9,
        cosmosdbsql_max_retry_wait_time=30,
        couchbase_backend_settings=None,
        elasticsearch_max_retries=None,
        elasticsearch_retry_on_timeout=None,
        elasticsearch_save_meta_as_text=True,
        elasticsearch_timeout=None,
        gcs_base_path="",
        gcs_bucket=None,
        gcs_project=None,
        gcs_ttl=0,
        mongodb_backend_settings=None,
        s3_access_key_id=None,
        s3_base_path=None,
        s3_bucket=None,
        s3_endpoint_url=None,
        s3_region=None,
        s3_secret_access_key=None,
    ),
    # Worker
    _used("worker_concurrency", None, concurrency, "Tasks at once; None: the number of CPUs."),
    _used("worker_pool", "prefork", text, "prefork, threads, asyncio or solo."),
    _used("worker_pool_start_method", None, choice("fork", "spawn"),
          "How children start; None: fork."),
    _used("worker_max_tasks_per_child", None, integer(1),
          "Replace a child after this many tasks."),
    _used("worker_max_memory_per_child", None, integer(1),
          "Replace a child above this many KiB."),
    _used("worker_shutdown_timeout", 25.0, seconds,
          "Seconds running tasks get to finish at a stop."),
    _used("worker_soft_shutdown_timeout", 0.0, seconds,
          "Celery's name for that; used if only this one is set."),
    _used("worker_priority_ageing", None, seconds,
          "Seconds of waiting that are worth one priority; None: off.", null=True),
    _used("worker_lease_timeout", 60.0, seconds,
          "A worker silent for this long is given up for dead."),
    _used("worker_max_lookahead", 64, integer(1, 120),
          "Most messages waiting in a child, while tasks are tiny."),
    _used("worker_disable_rate_limits", False, flag, "Ignore the rate limits of tasks."),
    _used("worker_enable_remote_control", True, remote,
          'Obey commands of other processes; "read-only": only those that look.'),
    _used("control_secret", None, secrets,
          "Commands must be signed with this; of several, the first signs."),
    _used("control_queue_ttl", 300.0, seconds, "Seconds a command waits for its worker."),
    _used("worker_autoscale_keepalive", 30.0, seconds,
          "Seconds until --autoscale takes an idle child away."),
    _used("worker_send_task_events", True, flag,
          "Send events of tasks and workers while somebody listens."),
    _used("worker_log_level", "INFO", level, "Least severity that the command line logs."),
    _used("worker_log_format", "text", text,
          "text, json, or a %-format for the logging module."),
    _used("worker_task_log_format", None, text,
          "A %-format for the loggers of tasks; None: as above."),
    _used("task_sensitive_names", (), names,
          "More names of parameters and keys whose values are never shown."),
    _used("worker_log_datefmt", None, text, "Format of times in the log."),
    _used("worker_task_log_datefmt", None, text,
          "The same for the loggers of tasks; None: as above."),
    _used("worker_log_color", None, flag, "Colours in the log; None: on a terminal."),
    _used("worker_metrics_port", None, address,
          'Serve this worker\'s figures for Prometheus there: a port, or "host:port".'),
    _used("worker_logfile", None, text, "File that the log goes to; None: standard error."),
    _used("worker_pidfile", None, text, "File that the worker writes its process id to."),
    *_accepted(
        "A service manager starts the worker as that user, with that umask.",
        worker_uid=None,
        worker_gid=None,
        worker_umask=None,
    ),
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
        of_celery=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    ),
    *_accepted(
        "liteq leaves the standard streams alone.", worker_redirect_stdouts_level="WARNING"
    ),
    *_accepted(
        _NO_CLASSES,
        worker_agent=None,
        worker_autoscaler="celery.worker.autoscale:Autoscaler",
        worker_consumer="celery.worker.consumer:Consumer",
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
        event_queue_exclusive=True,
        event_serializer="json",
        event_exchange="celeryev",
    ),
    *_accepted(
        "Commands go through the store.",
        control_queue_expires=10.0,
        control_queue_durable=False,
        control_queue_exclusive=True,
        control_exchange="celery",
    ),
    # Beat
    _used("beat_schedule", {}, mapping, "Periodic tasks: {name: {task, schedule, args, …}}."),
    _used("beat_max_loop_interval", 0.0, seconds,
          "Longest sleep of the beat; 0: its own choice."),
    _used("beat_cron_starting_deadline", None, seconds,
          "Fire a missed entry if it is no later than this."),
    _used("beat_scheduler", None, anything, "A scheduler class of your own, or its name."),
    _used("beat_sync_every", 0, integer(), "Runs after which a scheduler of your own syncs."),
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
    _used("security_keys", (), keys,
          "Messages and results are signed with the first, and checked with all of them."),
    _used("security_accept_unsigned", False, flag,
          "Also run what is not signed at all, while a store moves to signing."),
    _used("encryption_keys", (), encryption_keys,
          "Each Secret is stored encrypted with the first, and read with all of them."),
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


# Names that Celery had before version 4, where it is not CELERY_ and the new name. Those of
# its backends that are only the new name in capitals (S3_BUCKET) may be a project's own.
OLD_NAMES: Final[Mapping[str, str]] = {
    **{
        f"BROKER_{name}": f"broker_{name.lower()}"
        for name in _words(
            "URL READ_URL WRITE_URL TRANSPORT TRANSPORT_OPTIONS CONNECTION_TIMEOUT HOST PORT "
            "CONNECTION_RETRY CONNECTION_MAX_RETRIES FAILOVER_STRATEGY HEARTBEAT USER VHOST "
            "HEARTBEAT_CHECKRATE LOGIN_METHOD POOL_LIMIT USE_SSL PASSWORD CHANNEL_ERROR_RETRY "
            "CONNECTION_RETRY_ON_STARTUP NATIVE_DELAYED_DELIVERY_QUEUE_TYPE "
            "POOL_ACQUIRE_TIMEOUT"
        )
    },
    **{
        f"CELERYBEAT_{name}": f"beat_{name.lower()}"
        for name in _words(
            "SCHEDULE SCHEDULER SCHEDULE_FILENAME SYNC_EVERY MAX_LOOP_INTERVAL "
            "CRON_STARTING_DEADLINE ENABLE_REMOTE_CONTROL REMOTE_CONTROL_MAX_TICK_AGE"
        )
    },
    "CELERYBEAT_LOG_FILE": "beat_logfile",
    "CELERYBEAT_PID_FILE": "beat_pidfile",
    **{
        f"CELERYD_{name}": f"worker_{name.lower()}"
        for name in _words(
            "AGENT AUTOSCALER CONCURRENCY CONSUMER EXECUTABLE HIJACK_ROOT_LOGGER LOG_COLOR "
            "LOG_FORMAT MAX_TASKS_PER_CHILD MAX_MEMORY_PER_CHILD POOL POOL_PUTLOCKS TIMER "
            "POOL_RESTARTS PREFETCH_MULTIPLIER PROC_ALIVE_TIMEOUT REDIRECT_STDOUTS STATE_DB "
            "REDIRECT_STDOUTS_LEVEL TASK_LOG_FORMAT TIMER_PRECISION UMASK UID GID LOG_DATEFMT "
            "CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS DEDUPLICATE_SUCCESSFUL_TASKS "
            "DETECT_QUORUM_QUEUES DISABLE_PREFETCH ENABLE_PREFETCH_COUNT_REDUCTION "
            "ENABLE_SOFT_SHUTDOWN_ON_IDLE ETA_TASK_LIMIT POOL_START_METHOD "
            "SOFT_SHUTDOWN_TIMEOUT TASK_LOG_DATEFMT"
        )
    },
    "CELERYD_LOG_FILE": "worker_logfile",
    "CELERYD_LOG_LEVEL": "worker_log_level",
    "CELERYD_PID_FILE": "worker_pidfile",
    "CELERYD_WORKER_LOST_WAIT": "worker_lost_wait",
    "CELERYD_TASK_TIME_LIMIT": "task_time_limit",
    "CELERYD_TASK_SOFT_TIME_LIMIT": "task_soft_time_limit",
    **{
        f"CELERY_{name}": f"task_{name.lower()}"
        for name in _words(
            "ACKS_LATE ACKS_ON_FAILURE ACKS_ON_FAILURE_OR_TIMEOUT ACKS_ON_TIMEOUT ALWAYS_EAGER "
            "ALLOW_ERROR_CB_ON_CHORD_HEADER ANNOTATIONS CREATE_MISSING_QUEUES DEFAULT_EXCHANGE "
            "CREATE_MISSING_QUEUE_EXCHANGE_TYPE CREATE_MISSING_QUEUE_TYPE DEFAULT_PRIORITY "
            "DEFAULT_DELIVERY_MODE DEFAULT_EXCHANGE_TYPE DEFAULT_QUEUE DEFAULT_QUEUE_TYPE "
            "DEFAULT_RATE_LIMIT DEFAULT_ROUTING_KEY EAGER_PROPAGATES IGNORE_RESULT "
            "INHERIT_PARENT_PRIORITY QUEUES QUEUE_MAX_PRIORITY "
            "REJECT_ON_WORKER_LOST REMOTE_TRACEBACKS REPR_MAXLEVELS RETRY_ON_WORKER_LOST "
            "ROUTES STORE_EAGER_RESULT STORE_ERRORS_EVEN_IF_IGNORED TRACK_STARTED"
        )
    },
    "CELERY_DISABLE_RATE_LIMITS": "worker_disable_rate_limits",
    "CELERY_EAGER_PROPAGATES_EXCEPTIONS": "task_eager_propagates",
    "CELERY_ENABLE_REMOTE_CONTROL": "worker_enable_remote_control",
    "CELERY_MAX_CACHED_RESULTS": "result_cache_max",
    "CELERY_MESSAGE_COMPRESSION": "task_compression",
    "CELERY_REDIRECT_STDOUTS": "worker_redirect_stdouts",
    "CELERY_REDIRECT_STDOUTS_LEVEL": "worker_redirect_stdouts_level",
    "CELERY_RESULT_DB_SHORT_LIVED_SESSIONS": "database_short_lived_sessions",
    "CELERY_RESULT_DB_TABLENAMES": "database_table_names",
    "CELERY_RESULT_DBURI": "result_backend",
    "CELERY_RESULT_ENGINE_OPTIONS": "database_engine_options",
    "CELERY_SEND_EVENTS": "worker_send_task_events",
    "CELERY_SEND_TASK_SENT_EVENT": "task_send_sent_event",
    "CELERY_TASK_RESULT_EXPIRES": "result_expires",
    "CONTROL_EXCHANGE": "control_exchange",
    **{
        f"CONTROL_QUEUE_{name}": f"control_queue_{name.lower()}"
        for name in _words("TTL EXPIRES EXCLUSIVE DURABLE")
    },
    "ENABLE_UTC": "enable_utc",
    "RESULT_ACCEPT_CONTENT": "result_accept_content",
}


def close_name(
    name: str, cutoff: float = 0.7, *, among: Iterable[str] = SETTINGS
) -> str | None:
    import difflib  # late: only after a mistake

    found = difflib.get_close_matches(name.lower(), among, 1, cutoff)
    return found[0] if found else None


def new_name(key: str) -> str | None:
    """Return the name that a key has in the table, None if it is not there."""
    if key in SETTINGS:
        return key
    if key in OLD_NAMES:
        return OLD_NAMES[key]
    if key.isupper():
        for prefix in ("CELERY_", "LITEQ_"):
            if key.startswith(prefix) and (name := key[len(prefix) :].lower()) in SETTINGS:
                return name
    return None
