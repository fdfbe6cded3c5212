"""`liteq worker`: run tasks until stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from liteq.cli.front import Session, command, completing, names, worded
from liteq.cli.words import FORMATS, LEVELS, POOLS, autoscale, concurrency, pool
from liteq.cli.working import work

__all__ = ["worker", "worker_options"]

F = TypeVar("F", bound=Callable[..., Any])

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

SECONDS = click.FloatRange(min=0, min_open=True)
POSITIVE = click.IntRange(min=1)

_OPTIONS = [
    click.option(
        "-c",
        "--concurrency",
        type=worded(concurrency),
        metavar="N|auto",
        help="Tasks at once.  [default: one for each CPU]",
    ),
    click.option(
        "-P",
        "--pool",
        type=worded(pool),
        metavar="|".join(POOLS),
        help="What runs them.  [default: prefork]",
    ),
    click.option(
        "-Q",
        "--queues",
        type=names,
        metavar="A,B",
        envvar="LITEQ_QUEUES",
        shell_complete=completing("queues"),
        help="Consume these queues only; high:3,low:1 in turns, by weight.",
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
        help="The worker's name: %h is the host, %n its first part, %d the domain.",
    ),
    click.option(
        "-l",
        "--loglevel",
        type=click.Choice(LEVELS, case_sensitive=False),
        help="info shows each task.  [default: info; of `run`: warning]",
    ),
    click.option(
        "-I",
        "--include",
        type=names,
        metavar="A,B",
        help="Import these modules as well.",
    ),
    click.option(
        "--time-limit",
        type=SECONDS,
        metavar="SEC",
        help="Kill a task after this long.",
    ),
    click.option(
        "--soft-time-limit",
        type=SECONDS,
        metavar="SEC",
        help="Raise SoftTimeLimitExceeded in it after this long.",
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
        help="Replace a child that has grown above this.",
    ),
    click.option(
        "--pool-start-method",
        type=click.Choice(["fork", "spawn"]),
        help="How children start.",
    ),
    click.option(
        "--autoscale",
        type=worded(autoscale),
        metavar="MAX,MIN",
        help="Between MIN and MAX children, as there is work.",
    ),
]

_WORKER_ONLY = [
    click.option("--burst", is_flag=True, help="Stop when the queues are empty."),
    click.option(
        "--grace",
        type=click.FloatRange(min=0),
        metavar="SEC",
        help="How long a stop waits for running tasks before they are given back."
        "  [default: 25]",
    ),
    click.option(
        "--purge", "--discard", is_flag=True, help="Delete what waits in the queues first."
    ),
    click.option(
        "--pidfile", metavar="FILE", help="Write the process id there; refuse to start twice."
    ),
    click.option("-f", "--logfile", metavar="FILE", help="Log there instead of to stderr."),
    click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        help="[default: text]",
    ),
    click.option(
        "-B", "--beat", is_flag=True, help="Send periodic tasks too, as `liteq beat` does."
    ),
    click.option(
        "--metrics-port",
        metavar="[HOST:]PORT",
        help="Serve this worker's figures for Prometheus there.",
    ),
    click.option("--scheduler", metavar="CLASS", help="The beat's scheduler: module:Class."),
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
def worker(settings: tuple[str, ...], **options: Any) -> int:
    """Run tasks until stopped.

    TERM, INT and Ctrl-C finish what runs, then stop; a second one gives it back at once.
    HUP replaces the children, USR1 prints where each of them is.

    \b
    liteq worker                          run the tasks of ./tasks.py
    liteq worker -A proj -Q high,default -c 8 -l info
    liteq worker -Q high:3,low:1          three of high for each of low
    liteq worker --burst                  empty the queues and stop
    liteq worker worker_lease_timeout=30  change a setting
    """
    session = Session.current()
    _mind_celery_flags(session, options)
    return work(session, options, settings)


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
