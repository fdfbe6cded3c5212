"""`liteq worker`: run tasks until stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from liteq.cli.front import (
    Seconds,
    command,
    completing,
    format_option,
    level_option,
    logfile_option,
    names,
)
from liteq.cli.session import Session

__all__ = ["worker", "worker_options"]

F = TypeVar("F", bound=Callable[..., Any])

POOLS = ("prefork", "threads", "asyncio", "solo")
GREEN = ("eventlet", "gevent")
POOL_ALIASES = {"processes": "prefork", "fork": "prefork", "thread": "threads"}

# Celery's worker flags that would change what the user relies on, if they were passed over.
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
        raise click.BadParameter(f"{text!r}: a pool has at least one child")
    return most, max(least, 1)


def setting(token: str) -> tuple[str, str]:
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
@click.argument("settings", nargs=-1, type=setting, metavar="[SETTING=VALUE]...")
def worker(**options: Any) -> int:
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
    for name, reason in REFUSED.items():
        if options[name]:
            raise click.UsageError(reason)
    if options["autoscale"] and options["pool"] == "solo":
        raise click.UsageError("--autoscale: the solo pool has one thread, the worker's own")
    return Session.current().work(options)
