"""A worker started from the terminal: its app found and set, and what is shown of it.

None of this needs click: see `liteq.cli.words`.
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

from liteq import __version__ as VERSION  # noqa: N812 (a constant)
from liteq.cli.ending import ended
from liteq.cli.pidfile import holding
from liteq.cli.session import Session, WrongUsage, say
from liteq.garbage import unseen

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.cli.words import Plain
    from liteq.systemd import Notifier
    from liteq.worker import Worker

__all__ = ["log_as_set", "main", "run_worker", "store_of", "work"]

LAST_WORDS = 0.5  # seconds for threads to end in, when all work is done


def main(said: Plain, *, app: Liteq | None = None) -> int:
    """Run a worker as these words have it, and return its exit code."""
    session = Session(app)
    session.options = dict(said.common)
    try:
        return ended(session, lambda: _enter(session, said))
    except WrongUsage as exc:
        from liteq.cli.commands import usage_error  # late: with click, to say what is wrong

        usage_error(str(exc), "worker").show()
        return exc.exit_code


def _enter(session: Session, said: Plain) -> int:
    try:
        session.enter()
        return work(session, said.own, said.settings)
    except KeyboardInterrupt:
        say("")  # ends the line with ^C in it
        raise


def work(session: Session, options: Mapping[str, Any], settings: tuple[str, ...]) -> int:
    """Run a worker with the options of `liteq worker`, those left out being as if not given."""
    from liteq.systemd import Notifier  # before the app: it must not reach its children

    if options.get("autoscale") and options.get("concurrency"):
        session.note("--autoscale says how many children: --concurrency has no effect")
    if options.get("autoscale") and options.get("pool") == "solo":
        raise WrongUsage("--autoscale: the solo pool has one thread, the worker's own")
    notify = Notifier.from_environment()
    with _holding(options.get("pidfile"), options.get("hostname")):
        return run_worker(session, options, settings=settings, notify=notify)


def _holding(pidfile: str | None, hostname: str | None) -> AbstractContextManager[object]:
    """Keep a file with our process id, if one is named, while the context is open."""
    from liteq.nodes import file_of, node_name

    return holding(file_of(node_name(hostname), pidfile)) if pidfile else nullcontext()


def run_worker(
    session: Session,
    options: Mapping[str, Any],
    *,
    settings: tuple[str, ...] = (),
    loglevel: str | None = None,
    notify: Notifier | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Find the app, start a worker with these options, and return its exit code.

    `loglevel` is for an app whose log level nobody has set.
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
    log_as_set(app)
    session.import_tasks(options.get("include") or ())

    # A reader of JSON is a program, and where its lines go, nothing else should.
    shown = bool(app.conf.worker_logfile) or app.conf.worker_log_format != "json"

    is_told = True

    def ready() -> None:
        with suppress(OSError):  # the terminal, or who reads the pipe, may have gone
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
        patient=not options.get("burst"),
    )
    if options.get("purge"):
        deleted = app.broker.purge(made.queues)
        session.note(f"purged {deleted} messages from {', '.join(made.queues)}")
    if shown:
        is_told = _banner(session, made, found.reference)
    made.announced = shown and not session.quiet and not app.conf.worker_logfile
    # One that was given is held already, since before the app was imported.
    pidfile = None if options.get("pidfile") else app.conf.worker_pidfile
    with _holding(pidfile, made.hostname):
        status = made.run()
    if made.unfinished or (session.owns_process and _threads_remain()):
        session.at_end(lambda: _leave(status))
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


def log_as_set(app: Liteq) -> None:
    """Set the log up; one that cannot be written is wrong usage."""
    from liteq import applog

    try:
        applog.configure(app)
    except OSError as exc:
        raise WrongUsage(f"--logfile {app.conf.worker_logfile}: {exc.strerror}") from exc


def store_of(app: Liteq) -> str:
    """Return where the app's store is: an absolute path, or a URL without its password."""
    from liteq.exceptions import LiteqError
    from liteq.redaction import mask_url

    folder = None
    with suppress(LiteqError):  # a URL that nothing here can open is shown as it is
        folder = getattr(app.broker, "directory", None)
    return str(folder) if folder is not None else mask_url(app.broker_url)


def _kept_by(app: Liteq) -> str | None:
    """Say what a server's store survives, if it is on one; None if that cannot be asked now."""
    from liteq.exceptions import LiteqError

    ask = getattr(app.broker, "persistence", None)
    if ask is None:
        return ""
    try:
        return f" ({ask()})"
    except LiteqError:
        return None  # the worker says why, and tries again


# What the command line says


def _apply_settings(app: Liteq, settings: tuple[str, ...], options: Mapping[str, Any]) -> None:
    app.conf.override(
        {
            "worker_log_level": options.get("loglevel"),
            "worker_log_format": options.get("log_format"),
            "worker_logfile": options.get("logfile"),
            "worker_log_color": options["colour"],
            "worker_pool_start_method": options.get("pool_start_method"),
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
        raise WrongUsage(f"{token!r}: an argument must be SETTING=VALUE")
    name = key.strip().lower().replace(".", "_")
    for known in (name, f"worker_{name.lstrip('_')}"):
        if known in SETTINGS:
            return known, value
    from difflib import get_close_matches  # late: for who has mistyped

    near = get_close_matches(name, SETTINGS, n=1)
    advice = f"; did you mean {near[0]!r}?" if near else ""
    raise WrongUsage(f"there is no setting {name!r}{advice}")


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
        f"queues    {', '.join(made.queues)} · {_size(made)} × {made.pool_kind}",
    )
    return kept is not None


def _size(made: Worker) -> str:
    scaler = made.autoscaler
    return str(made.concurrency) if scaler is None else f"{scaler.least} to {scaler.most}"
