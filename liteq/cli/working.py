"""The worker as a command: its options applied to the app, its banner, its exit code.

Nothing here imports click, which would stay in the memory of the worker and its children.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from liteq import __version__
from liteq.cli.logs import is_apart, log_as_set
from liteq.cli.pidfile import holding
from liteq.garbage import unseen
from liteq.wording import several

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.cli.session import Session
    from liteq.systemd import Notifier
    from liteq.worker import Worker

__all__ = ["leave", "run_worker", "store_of", "work"]

_LAST_WORDS = 0.5  # seconds for threads to end in, when all work is done

# Celery's worker flags that have no meaning here, as click parameters, and why not.
NEEDLESS = {
    "task_events": "events are sent whenever somebody listens",
    "without_gossip": "workers do not gossip",
    "without_mingle": "workers do not mingle",
    "without_heartbeat": "the heartbeat is a row in the store",
    "heartbeat_interval": "the heartbeat has its own interval",
    "optimization": "a task always goes to a free child",
    "prefetch_multiplier": "a worker claims what it can start",
    "disable_prefetch": "a worker claims what it can start",
    "statedb": "revoked tasks are rows in the store",
    "schedule": "the schedule is kept in the store",
}


def work(session: Session, options: Mapping[str, Any]) -> int:
    """Run tasks until stopped, as the options of `liteq worker` say; return the exit code."""
    from liteq.systemd import Notifier  # before the app: it must not reach its children

    session.heed_term()
    _say_what_is_needless(session, options)
    notify = Notifier.from_environment()
    with _holding(session, options["pidfile"], options["hostname"]):
        return run_worker(session, options, notify=notify, hands_over=True)


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
    _apply_settings(app, {**options, "colour": session.colour})
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
        noun = "message" if deleted == 1 else "messages"
        session.note(f"purged {deleted} {noun} from {several(made.queues)}")
    if shown:
        is_told = _banner(session, made, found.reference)
    made.announced = shown and not session.quiet and not app.conf.worker_logfile
    # One that was given is held already, since before the app was imported.
    pidfile = None if options.get("pidfile") else app.conf.worker_pidfile
    with _holding(session, pidfile, made.hostname):
        status = made.run()
    if made.unfinished or (session.owns_process and _threads_remain()):
        session.abandons_threads = True
    return status


def _threads_remain() -> bool:
    """Tell whether threads run on for which Python would wait at its end, for as long as
    they like: they run what was given back, or are the program's own."""
    patience = time.monotonic() + _LAST_WORDS
    others = [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.current_thread()
    ]
    for thread in others:
        thread.join(max(0.0, patience - time.monotonic()))
    return any(thread.is_alive() for thread in others)


def leave(status: int) -> NoReturn:
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


# What the user sees


def _banner(session: Session, made: Worker, reference: str) -> bool:
    """Print the first four of the banner's five lines; the fifth says that it is ready. False
    if the store could not say what it survives."""
    app = made.app
    number = len(app.tasks.own())
    count = f"{number} task{'' if number == 1 else 's'}"
    kept = _kept_by(app)
    session.banner(
        f"liteq     {__version__} · Python {sys.version.split()[0]} · pid {os.getpid()}",
        f"app       {app.main or reference} ({reference}) · {count}",
        f"store     {store_of(app)}{kept or ''}",
        f"queues    {several(made.queues)} · {_size(made)} × {made.pool_kind}",
    )
    return kept is not None


def _size(made: Worker) -> str:
    scaler = made.autoscaler
    return str(made.concurrency) if scaler is None else f"{scaler.least} to {scaler.most}"


def _say_what_is_needless(session: Session, options: Mapping[str, Any]) -> None:
    """Say once what has no effect: flags that are Celery's, a size beside a range."""
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


def _apply_settings(app: Liteq, options: Mapping[str, Any]) -> None:
    app.conf.override(
        {
            "worker_log_level": options["loglevel"],
            "worker_log_format": options.get("log_format"),
            "worker_logfile": options.get("logfile"),
            "worker_log_color": options["colour"],
            "worker_pool_start_method": options["pool_start_method"],
        }
    )
    app.conf.override(dict(options.get("settings", ())))
    if app.conf.worker_logfile:
        from liteq.nodes import file_of, node_name

        node = node_name(options.get("hostname"))
        app.conf.override({"worker_logfile": file_of(node, app.conf.worker_logfile)})
