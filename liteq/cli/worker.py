"""`liteq worker`: run tasks until stopped."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from liteq.cli.front import VERSION, Seconds, Session, command, completing, names
from liteq.cli.logs import format_option, is_apart, level_option, log_as_set, logfile_option
from liteq.cli.pidfile import holding
from liteq.garbage import unseen
from liteq.wording import several

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.systemd import Notifier
    from liteq.worker import Worker

__all__ = ["run_worker", "store_of", "worker", "worker_options"]

F = TypeVar("F", bound=Callable[..., Any])

POOLS = ("prefork", "threads", "asyncio", "solo")
GREEN = ("eventlet", "gevent")
POOL_ALIASES = {"processes": "prefork", "fork": "prefork", "thread": "threads"}
LAST_WORDS = 0.5  # seconds for threads to end in, when all work is done

# Celery's worker flags that have no meaning here, as click parameters, and why not.
NEEDLESS = {
    "task_events": "events are sent whenever somebody listens",
    "without_gossip": "workers do not gossip",
    "without_mingle": "workers do not mingle",
    "without_heartbeat": "the heartbeat is a row in the store",
    "heartbeat_interval": "the heartbeat has its own rhythm",
    "optimization": "a task goes to a child that is free, always",
    "prefetch_multiplier": "a worker claims what it can start",
    "disable_prefetch": "a worker claims what it can start",
    "statedb": "revoked tasks are rows in the store",
    "schedule": "the schedule is kept in the store",
}
# And those that would change what the user relies on, if they were passed over.
REFUSED = {
    "detach": "--detach is for a service manager: systemd, or `nohup liteq worker &`",
    "uid": "--uid is for a service manager: start the worker as that user",
    "gid": "--gid is for a service manager: start the worker as that group",
    "umask": "--umask is for a service manager: set it before the worker starts",
    "executable": "--executable: start that Python yourself, with -m liteq worker",
}


def concurrency(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither a number above 0 nor auto")
    return int(text)


def pool(text: str) -> str:
    name = POOL_ALIASES.get(text.lower(), text.lower())
    if name not in POOLS:
        instead = "; asyncio runs many tasks at once" if name in GREEN else ""
        raise click.BadParameter(f"{text!r} is none of {', '.join(POOLS)}{instead}")
    return name


def autoscale(text: str) -> tuple[int, int]:
    """Return the most and the least children of `MAX,MIN`, or of `MAX`, which means 1."""
    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r} is not MAX,MIN")
    most, least = max(map(int, parts)), min(map(int, parts)) if len(parts) == 2 else 1
    if most < 1:
        raise click.BadParameter(f"{text!r}: a pool has one child at least")
    return most, max(least, 1)


SECONDS = Seconds(min=0)
POSITIVE = click.IntRange(min=1)

_OPTIONS = [
    click.option(
        "-c",
        "--concurrency",
        type=concurrency,
        metavar="N|auto",
        help="Tasks at once.  [default: one for each CPU]",
    ),
    click.option(
        "-P",
        "--pool",
        type=pool,
        metavar="|".join(POOLS),
        help="What runs the tasks.  [default: prefork]",
    ),
    click.option(
        "-Q",
        "--queues",
        type=names,
        metavar="A,B",
        envvar="LITEQ_QUEUES",
        shell_complete=completing("queues"),
        help="Consume only these queues; high:3,low:1: by weight.",
    ),
    click.option(
        "-X",
        "--exclude-queues",
        type=names,
        metavar="A,B",
        help="Consume all queues but these.",
    ),
    click.option(
        "-n",
        "--hostname",
        metavar="NAME",
        help="The worker's name: %h is the host, %n its first part, %d its domain.",
    ),
    level_option("info shows each task.  [default: info; of `run`: warning]"),
    click.option(
        "-I",
        "--include",
        type=names,
        metavar="A,B",
        help="Also import these modules.",
    ),
    click.option(
        "--time-limit",
        type=SECONDS,
        metavar="SEC",
        help="Kill a task after this long; 0: use the settings.",
    ),
    click.option(
        "--soft-time-limit",
        type=SECONDS,
        metavar="SEC",
        help="Raise SoftTimeLimitExceeded in a task after this long; 0: use the settings.",
    ),
    click.option(
        "--max-tasks-per-child",
        type=POSITIVE,
        metavar="N",
        help="Replace a child after N tasks.",
    ),
    click.option(
        "--max-memory-per-child",
        type=POSITIVE,
        metavar="KIB",
        help="Replace a child whose memory exceeds this.",
    ),
    click.option(
        "--pool-start-method",
        type=click.Choice(["fork", "spawn"]),
        help="How children start.",
    ),
    click.option(
        "--autoscale",
        type=autoscale,
        metavar="MAX,MIN",
        help="Keep between MIN and MAX children, depending on the load.",
    ),
]

_WORKER_ONLY = [
    click.option("--burst", is_flag=True, help="Stop when the queues are empty."),
    click.option(
        "--grace",
        type=Seconds(min=0),
        metavar="SEC",
        help="How long a stop waits for running tasks before it returns them to the queue."
        "  [default: 25]",
    ),
    click.option(
        "--purge",
        "--discard",
        is_flag=True,
        help="First delete the waiting messages of the queues.",
    ),
    click.option(
        "--pidfile",
        metavar="FILE",
        help="Write the process id to this file; refuse to start twice.",
    ),
    logfile_option,
    format_option,
    click.option(
        "-B", "--beat", is_flag=True, help="Also send periodic tasks, like `liteq beat`."
    ),
    click.option(
        "--metrics-port",
        metavar="[HOST:]PORT",
        help="Serve this worker's metrics for Prometheus.",
    ),
    click.option("--scheduler", metavar="CLASS", help="The scheduler of --beat: module:Class."),
    click.option("-E", "--task-events", "--events", "task_events", is_flag=True, hidden=True),
    click.option("--without-gossip", is_flag=True, hidden=True),
    click.option("--without-mingle", is_flag=True, hidden=True),
    click.option("--without-heartbeat", is_flag=True, hidden=True),
    click.option("--heartbeat-interval", type=float, hidden=True),
    click.option("-O", "--optimization", type=click.Choice(["default", "fair"]), hidden=True),
    click.option("--prefetch-multiplier", type=int, hidden=True),
    click.option("--disable-prefetch", is_flag=True, hidden=True),
    click.option("-S", "--statedb", hidden=True),
    click.option("-s", "--schedule", "--schedule-filename", "schedule", hidden=True),
    click.option("-D", "--detach", is_flag=True, hidden=True),
    click.option("--uid", hidden=True),
    click.option("--gid", hidden=True),
    click.option("--umask", hidden=True),
    click.option("--executable", hidden=True),
]


def worker_options(function: F) -> F:
    """Add the options that say how tasks are run."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def _own_options(function: F) -> F:
    for option in reversed(_WORKER_ONLY):
        function = option(function)
    return function


@command()
@worker_options
@_own_options
@click.argument("settings", nargs=-1, metavar="[SETTING=VALUE]...")
def worker(settings: tuple[str, ...], pidfile: str | None, **options: Any) -> int:
    """Run tasks until stopped.

    TERM, INT and Ctrl-C stop the worker after its running tasks have ended or reached an
    interruptible checkpoint; a second one returns them to the queue at once. HUP replaces
    the children, USR1 prints their stacks.

    \b
    liteq worker                          run the tasks of ./tasks.py
    liteq worker -A proj -Q high,default -c 8 -l info
    liteq worker -Q high:3,low:1          three of high for one of low
    liteq worker --burst                  empty the queues and stop
    liteq worker worker_lease_timeout=30  change a setting
    """
    from liteq.systemd import Notifier  # before the app: it must not reach its children

    session = Session.current()
    session.heed_term()
    _mind_celery_flags(session, options)
    notify = Notifier.from_environment()
    with _holding(session, pidfile, options["hostname"]):
        given = {**options, "pidfile": pidfile}
        return run_worker(session, given, settings=settings, notify=notify, hands_over=True)


def _holding(
    session: Session, pidfile: str | None, hostname: str | None
) -> AbstractContextManager[object]:
    """Keep a file with our process id, if one is named, while the context is open."""
    from liteq.nodes import file_of, node_name

    if not pidfile:
        return nullcontext()
    return holding(file_of(node_name(hostname), pidfile), session.heed_term)


def run_worker(
    session: Session,
    options: Mapping[str, Any],
    *,
    settings: tuple[str, ...] = (),
    loglevel: str | None = None,
    notify: Notifier | None = None,
    on_ready: Callable[[], None] | None = None,
    hands_over: bool = False,
) -> int:
    """Find the app, start a worker with these options, and return its exit code.

    `loglevel` is for an app whose log level nobody has set; `hands_over` as in `Worker`.
    """
    with unseen() if session.owns_process else nullcontext():
        import_module("liteq.discovery")  # the next to be needed, with the app
        from liteq.worker import Worker

    begun = time.monotonic()
    found = session.find()
    app = found.app
    if loglevel is not None and not app.conf.value_set_for("worker_log_level"):
        app.conf.override({"worker_log_level": loglevel})
    _apply_settings(app, settings, {**options, "colour": session.colour})
    log_as_set(session, app, options)
    session.import_tasks(options.get("include") or ())

    shown = is_apart(app)
    is_told = True

    def ready() -> None:
        if shown:
            if not is_told and (kept := _kept_by(app)):
                session.banner(f"store     {store_of(app)}{kept}")
            took = time.monotonic() - begun
            session.banner(f"ready     in {took:.2f} s · Ctrl-C to stop")
        if on_ready is not None:
            on_ready()

    made = Worker(
        app,
        queues=options.get("queues"),
        exclude_queues=options.get("exclude_queues") or (),
        concurrency=options.get("concurrency"),
        autoscale=options.get("autoscale"),
        pool=options.get("pool"),
        hostname=options.get("hostname"),
        burst=options.get("burst", False),
        grace=options.get("grace"),
        time_limit=options.get("time_limit"),
        soft_time_limit=options.get("soft_time_limit"),
        max_tasks_per_child=options.get("max_tasks_per_child"),
        max_memory_per_child=options.get("max_memory_per_child"),
        include=options.get("include") or (),
        beat=options.get("beat", False),
        scheduler=options.get("scheduler"),
        metrics=options.get("metrics_port"),
        notify=notify,
        on_ready=ready,
        hands_over=hands_over,
        patient=not options.get("burst"),
    )
    if options.get("purge"):
        deleted = app.broker.purge(made.queues)
        session.note(f"purged {deleted} messages from {several(made.queues)}")
    if shown:
        is_told = _banner(session, made, found.reference)
    made.announced = shown and not session.quiet and not app.conf.worker_logfile
    # One that was given is held already, since before the app was imported.
    pidfile = None if options.get("pidfile") else app.conf.worker_pidfile
    with _holding(session, pidfile, made.hostname):
        status = made.run()
    if made.unfinished or (session.owns_process and _threads_remain()):
        click.get_current_context().call_on_close(lambda: _leave(status))
    return status


def _threads_remain() -> bool:
    """Tell whether threads run on for which Python would wait at its end, for as long as
    they like: they run what was given back, or are the program's own."""
    patience = time.monotonic() + LAST_WORDS
    others = [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.current_thread()
    ]
    for thread in others:
        thread.join(max(0.0, patience - time.monotonic()))
    return any(thread.is_alive() for thread in others)


def _leave(status: int) -> NoReturn:
    """End the process now, whatever its threads do."""
    logging.shutdown()
    with suppress(OSError):  # the terminal, or who reads the pipe, may have gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def store_of(app: Liteq) -> str:
    """Return where the app's store is: an absolute path, or a URL without its password."""
    from liteq.exceptions import LiteqError
    from liteq.redaction import mask_url

    folder = None
    with suppress(LiteqError):  # a URL that nothing here can open is shown as it is
        folder = app.broker.directory
    return mask_url(app.broker_url) if folder is None else folder


def _kept_by(app: Liteq) -> str | None:
    """Say what a server's store survives, if it is on one; None if that cannot be asked now."""
    from liteq.exceptions import LiteqError

    try:
        kept = app.broker.persistence()
    except LiteqError:
        return None  # the worker says why, and tries again
    return f" ({kept})" if kept else ""


# What the command line says


def _mind_celery_flags(session: Session, options: Mapping[str, Any]) -> None:
    """Refuse, or say once that it has no effect, what is Celery's and not liteq's."""
    for name, reason in REFUSED.items():
        if options[name]:
            raise click.UsageError(reason)
    needless = {name: reason for name, reason in NEEDLESS.items() if options[name]}
    for name in ("loader", "skip_checks"):
        if session.options.get(name):
            needless[name] = "Celery's"
    if needless:
        said = "; ".join(
            f"--{name.replace('_', '-')} ({why})" for name, why in needless.items()
        )
        session.note(f"accepted, without effect: {said}")
    if options["autoscale"] and options["concurrency"]:
        session.note("--autoscale says how many children: --concurrency has no effect")
    if options["autoscale"] and options["pool"] == "solo":
        raise click.UsageError("--autoscale: the solo pool has one thread, the worker's own")


def _apply_settings(app: Liteq, settings: tuple[str, ...], options: Mapping[str, Any]) -> None:
    app.conf.override(
        {
            "worker_log_level": options["loglevel"],
            "worker_log_format": options.get("log_format"),
            "worker_logfile": options.get("logfile"),
            "worker_log_color": options["colour"],
            "worker_pool_start_method": options["pool_start_method"],
        }
    )
    app.conf.override(dict(map(_setting, settings)))
    if app.conf.worker_logfile:
        from liteq.nodes import file_of, node_name

        node = node_name(options.get("hostname"))
        app.conf.override({"worker_logfile": file_of(node, app.conf.worker_logfile)})


def _setting(token: str) -> tuple[str, str]:
    """Read `worker_name=value`, or `name=value` of a setting that begins with worker_."""
    from liteq.settings import SETTINGS

    key, equals, value = token.partition("=")
    if not equals:
        raise click.UsageError(f"{token!r}: an argument must be SETTING=VALUE")
    name = key.strip().lower().replace(".", "_")
    for known in (name, f"worker_{name.lstrip('_')}"):
        if known in SETTINGS:
            return known, value
    from difflib import get_close_matches  # late: for who has mistyped

    near = get_close_matches(name, SETTINGS, n=1)
    advice = f"; did you mean {near[0]!r}?" if near else ""
    raise click.UsageError(f"there is no setting {name!r}{advice}")


# What the user sees


def _banner(session: Session, made: Worker, reference: str) -> bool:
    """Print the first four of the banner's five lines; the fifth says that it is ready. False
    if the store could not say what it survives."""
    app = made.app
    number = len(app.tasks.own())
    count = f"{number} task{'' if number == 1 else 's'}"
    kept = _kept_by(app)
    session.banner(
        f"liteq     {VERSION} · Python {sys.version.split()[0]} · pid {os.getpid()}",
        f"app       {app.main or reference} ({reference}) · {count}",
        f"store     {store_of(app)}{kept or ''}",
        f"queues    {several(made.queues)} · {_size(made)} × {made.pool_kind}",
    )
    return kept is not None


def _size(made: Worker) -> str:
    scaler = made.autoscaler
    return str(made.concurrency) if scaler is None else f"{scaler.least} to {scaler.most}"
