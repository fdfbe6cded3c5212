"""What may be wrong with an installation, a configuration and a store, and what to do.

`examine()` looks at one thing after the other and tells of each, sound or not; it changes
nothing. What cannot be looked at (no app, no store yet) is told like anything else.
"""

from __future__ import annotations

import fcntl
import os
import platform
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from liteq.brokers.files import RESERVE, filesystem_of, is_network_filesystem, is_there
from liteq.brokers.searching import Search
from liteq.exceptions import LiteqError
from liteq.shortage import advice
from liteq.wording import brief, several

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.base import Broker

__all__ = ["Finding", "Level", "examine"]

Level: TypeAlias = Literal["ok", "warn", "fail"]

_MIB: Final = 1024 * 1024
_QUICK: Final = 1024 * _MIB  # bytes up to which a store is read as a whole without being asked
_LONG_WAL: Final = 64 * _MIB
_LITTLE_DISK: Final = 512 * _MIB
_SKEW: Final = 1.0  # seconds by which clocks may differ
_FILES: Final = 1024  # descriptors a worker should be allowed
_NAMED: Final = 5


class Finding(NamedTuple):
    """One thing that was looked at. `advice`: what to do, "" for nothing."""

    name: str
    level: Level
    what: str
    advice: str = ""


def examine(
    broker: Broker | None, app: Liteq | None = None, *, full: bool = False
) -> Iterator[Finding]:
    """Look at everything and yield what was found. `full`: read a large store as a whole."""
    yield from _machine()
    if app is not None:
        yield from _settings(app)
    if broker is None:
        return
    if (folder := broker.folder) is not None:
        try:
            there = is_there(folder)
        except LiteqError as exc:
            yield Finding("rights", "fail", str(exc))
            return
        yield from _folder(folder)
        if not there:
            yield Finding("store", "ok", f"{folder} is empty: made at the first call")
            return
        looks: tuple[Callable[..., Iterator[Finding]], ...] = (_file, _work)
    elif broker.place is not None:
        looks = (_server, _work)
    else:
        yield Finding(
            "store", "warn", "in memory: lost with its process", "use sqlite:// or redis://"
        )
        looks = (_work,)
    for look in looks:
        try:
            yield from look(broker, full=full) if look is _file else look(broker)
            if look is _work and app is not None:
                yield from _entries(app)
        except LiteqError as exc:
            yield Finding("store", "fail", str(exc), _advice_for(exc))
            return


# The machine


def _machine() -> Iterator[Finding]:
    import apsw

    version = platform.python_version()
    yield Finding("python", "ok", f"{platform.python_implementation()} {version}")
    yield Finding("sqlite", "ok", f"{apsw.sqlite_lib_version()}, apsw {apsw.apsw_version()}")
    yield _descriptors()


def _descriptors() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FILES:
        return Finding("descriptors", "ok", f"{soft} files may be open")
    return Finding(
        "descriptors",
        "warn",
        f"only {soft} files may be open (hard limit {hard})",
        f"raise it: ulimit -n {_FILES}, or LimitNOFILE= in the service",
    )


# The app


def _settings(app: Liteq) -> Iterator[Finding]:
    from liteq.settings import SETTINGS

    try:
        table = app.conf.table(with_defaults=False)
        unknown = sorted(name for name in table if name not in SETTINGS)
        kept = app.keeps_results
    except LiteqError as exc:
        yield Finding(
            "settings", "fail", str(exc), "`liteq config` shows where values come from"
        )
        return
    if unknown:
        yield Finding(
            "settings",
            "warn",
            f"not known: {several(unknown)}",
            "correct or remove them: `liteq config NAME` suggests",
        )
    else:
        results = "" if kept else ", results are not kept"
        yield Finding("settings", "ok", f"{len(table)} of your own{results}")
    if app.conf.task_always_eager:
        yield Finding(
            "task_always_eager",
            "warn",
            "on: calls run in the caller and reach no worker",
            f"turn it off outside of tests ({app.conf.source_of('task_always_eager')})",
        )
    tasks = len(app.tasks.own())
    if tasks:
        yield Finding("tasks", "ok", f"{tasks} registered")
    else:
        yield Finding(
            "tasks", "warn", "the app has no tasks", "import their modules: the setting include"
        )


# A store in a folder


def _folder(folder: Path) -> Iterator[Finding]:
    place = folder
    while not place.exists():
        place = place.parent
    kind = filesystem_of(place)
    if is_network_filesystem(kind):
        yield Finding(
            "file system",
            "fail",
            f"{folder} is on {kind}, where SQLite's WAL loses commits",
            "put the store on a local disk, or use redis:// for several machines",
        )
    else:
        yield Finding("file system", "ok", f"{kind or 'of an unknown kind'}: {folder}")
    yield _disk(place)
    if not os.access(place, os.W_OK | os.X_OK):
        yield _closed(place)
        return
    if place == folder:
        yield _rights(folder)
    yield _locking(place)


def _closed(place: Path) -> Finding:
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return Finding("disk", "fail", f"{place} is read-only", "mount it for writing")
    return Finding("rights", "fail", f"{place} cannot be written", f"as {_user()}, chown it")


def _disk(place: Path) -> Finding:
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    what = f"{free // _MIB:,} MiB free"
    if disk.f_files > 0 and disk.f_favail == 0:
        return Finding("disk", "fail", f"{what}, no inode", "remove files: workers need some")
    if free < RESERVE:
        return Finding("disk", "fail", what, "free space: new messages are refused")
    if free < _LITTLE_DISK:
        return Finding("disk", "warn", what, "free space: a full disk refuses new messages")
    return Finding("disk", "ok", what)


def _rights(folder: Path) -> Finding:
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022:
        return Finding(
            "rights",
            "fail",
            f"{folder} can be written by others (mode {mode:04o})",
            f"chmod 700 {folder}",
        )
    if mode & 0o044:
        return Finding(
            "rights",
            "warn",
            f"others can read {folder} (mode {mode:04o})",
            f"chmod 700 {folder}",
        )
    if found.st_uid != os.getuid():
        return Finding(
            "rights",
            "warn",
            f"{folder} is another user's (uid {found.st_uid})",
            "run as that user",
        )
    return Finding("rights", "ok", f"mode {mode:04o}")


def _locking(place: Path) -> Finding:
    """Try whether a lock that one descriptor holds is seen by another."""
    try:
        file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 (closed below)
    except OSError as exc:
        why = f"no file can be made in {place}: {exc.strerror}"
        return Finding("locking", "fail", why, advice(exc) or "")
    with file:
        other = -1
        try:
            if _HAS_PROC:
                other = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if other >= 0:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Finding(
                    "locking",
                    "fail",
                    f"two holders got the same lock in {place}",
                    "put the store on a local disk",
                )
        except BlockingIOError:
            return Finding("locking", "ok", "a held lock is seen")
        except OSError as exc:
            return Finding(
                "locking", "fail", f"no locks in {place}: {exc}", "put it on a local disk"
            )
        finally:
            if other >= 0:
                os.close(other)
    return Finding("locking", "ok", "locks can be taken")


_HAS_PROC: Final = os.path.isdir("/proc/self/fd")


def _file(broker: Broker, *, full: bool) -> Iterator[Finding]:
    from liteq.brokers.schema import VERSION

    keeper = broker.keeper()
    assert keeper is not None
    found = keeper.version()
    if found is not None and found < VERSION:
        yield Finding(
            "schema",
            "ok",
            f"version {found}; the next use makes it {VERSION}",
            "`liteq db migrate` does it now",
        )
    else:
        broker.counts()  # refuses a file of a later liteq
        yield Finding("schema", "ok", f"version {found}")
    size = os.path.getsize(keeper.path)
    if size > _QUICK and not full:
        yield Finding(
            "integrity",
            "ok",
            f"not checked: {size // _MIB:,} MiB",
            "`liteq doctor --full` does",
        )
    elif problems := keeper.check():
        yield Finding(
            "integrity",
            "fail",
            problems[0],
            "stop all workers and restore a backup: `liteq db restore FILE`",
        )
    else:
        yield Finding("integrity", "ok", f"{size / _MIB:,.1f} MiB checked")
    wal = keeper.wal_bytes()
    if wal > _LONG_WAL:
        yield Finding(
            "wal",
            "warn",
            f"{wal // _MIB:,} MiB",
            "a reader may be stuck in a transaction; a live worker shortens it",
        )
    else:
        yield Finding("wal", "ok", f"{wal / _MIB:,.1f} MiB")


# A store on a server


def _server(broker: Broker) -> Iterator[Finding]:
    import redis

    broker.check()
    facts = broker.facts()
    yield Finding("redis", *_version(facts.get("version")))
    yield Finding("client", "ok", f"redis-py {redis.__version__}")
    kept = facts["persistence"]
    if kept.startswith("append-only"):
        yield Finding("persistence", "ok", kept)
    else:
        yield Finding(
            "persistence",
            "warn",
            kept,
            "set `appendonly yes` (and appendfsync everysec or always) on the server",
        )
    for name, word in (("last_save", "the last snapshot"), ("aof_write", "the last write")):
        if facts.get(name) not in (None, "ok"):
            yield Finding(
                "persistence", "fail", f"{word} failed: {facts[name]}", "see the server's log"
            )
    policy = facts.get("policy")
    if policy is None:
        yield Finding("eviction", "warn", "not known: this user may not see INFO", "")
    elif policy == "noeviction":
        yield Finding("eviction", "ok", policy)
    else:
        yield Finding(
            "eviction",
            "warn",
            f"{policy}, without effect while maxmemory is 0",
            "set maxmemory-policy noeviction",
        )
    used, most = facts.get("memory", 0), facts.get("maxmemory", 0)
    if most and used > 0.9 * most:
        yield Finding(
            "memory",
            "warn",
            f"{used // _MIB:,} of {most // _MIB:,} MiB",
            "raise maxmemory: a full server refuses new messages",
        )
    else:
        yield Finding("memory", "ok", f"{used / _MIB:,.1f} MiB")
    skew = facts["clock_skew"]
    if abs(skew) > _SKEW:
        yield Finding(
            "clock",
            "warn",
            f"the server's is {skew:+.1f} s from ours",
            "run NTP on both: times given by callers are compared with the server's",
        )
    else:
        yield Finding("clock", "ok", f"{skew:+.3f} s from the server's")


def _version(text: str | None) -> tuple[Level, str, str]:
    if text is None:
        return "warn", "version not known: this user may not see INFO", ""
    name, _, number = text.partition(" ")
    if name == "redis" and tuple(map(int, number.split(".")[:2])) < (6, 2):
        return "fail", text, "6.2 or later is needed"
    return "ok", text, ""


# What is in it


def _work(broker: Broker) -> Iterator[Finding]:
    workers = broker.workers()
    counts = broker.counts()
    known = broker.roster()
    stuck = [f"{worker.name} (pid {worker.pid})" for worker in known if worker.state == "stuck"]
    died = [worker.name for worker in known if worker.state == "dead"]
    if stuck:
        yield Finding(
            "workers",
            "warn",
            f"{len(workers)} live, {len(stuck)} give no sign: {several(stuck)}",
            "stopped or stuck? `kill -USR1` their processes prints their stacks",
        )
    elif died:
        yield Finding(
            "workers",
            "warn",
            f"{len(workers)} live, died lately: {several(died)}",
            "start them again; see their logs for why",
        )
    else:
        yield Finding("workers", "ok", f"{len(workers)} live")
    served = {name for worker in workers for name in worker.queues}
    left = sorted(
        name for name, found in counts.items() if name not in served and any(found.values())
    )
    if left:
        yield Finding(
            "queues",
            "warn",
            f"no worker consumes {several(left)}",
            f"liteq worker -Q {','.join(map(brief, left[:_NAMED]))}",
        )
    else:
        yield Finding("queues", "ok", f"{len(counts)} with work, all of them served")
    if parked := sum(found.get("parked", 0) for found in counts.values()):
        some = islice(broker.find(Search(states=frozenset({"parked"}))), 1000)
        names = sorted({one.task for one in some})
        yield Finding(
            "parked",
            "warn",
            f"{parked:,} of tasks that no worker knows: {several(names)}",
            "start a worker that has them, or `liteq cancel -s parked`",
        )
    dead = next(broker.find(Search(dead=True)), None)
    if dead is not None:
        number = sum(1 for _ in islice(broker.find(Search(dead=True)), 10_000))
        more = " or more" if number == 10_000 else ""
        yield Finding(
            "dead letters", "warn", f"{number:,}{more}", "look at them: `liteq dead list`"
        )
    else:
        yield Finding("dead letters", "ok", "none")
    yield from _schedules(broker)


def _schedules(broker: Broker) -> Iterator[Finding]:
    entries = broker.schedules()
    if not entries:
        return
    late = time.time() - 60
    overdue = [
        e.name for e in entries if e.due_at is not None and not e.paused and e.due_at < late
    ]
    if overdue:
        yield Finding(
            "periodic tasks",
            "warn",
            f"overdue: {several(overdue)}",
            "no beat runs: start `liteq beat`, or a worker with -B",
        )
    else:
        yield Finding("periodic tasks", "ok", f"{len(entries)}, none overdue")


def _entries(app: Liteq) -> Iterator[Finding]:
    stored = app.schedules.list()
    broken = [one for one in stored if one.error]
    if broken:
        yield Finding(
            "periodic entries",
            "warn",
            f"not fired: {several([one.name for one in broken])} ({broken[0].error})",
            "make them anew, or give the beats the key that they were signed with",
        )
    if app.conf.beat_scheduler:
        return  # that keeps its entries wherever it likes
    missing = app.schedules.sound()[0].keys() - {one.name for one in stored}
    if missing:
        yield Finding(
            "declared entries",
            "warn",
            f"not in the store: {several(sorted(missing))}",
            "a beat enters them when it starts: restart `liteq beat`, or a worker with -B",
        )


def _advice_for(exc: LiteqError) -> str:
    from liteq.exceptions import BrokerBusy, BrokerUnavailable, SchemaError, StoreForbidden

    match exc:
        case SchemaError():
            return "upgrade liteq here"
        case BrokerBusy():
            return "find who holds it: a stopped process, a debugger, a backup tool"
        case StoreForbidden():
            return ""  # it says so itself
        case BrokerUnavailable():
            return "start the server, or correct the URL: `liteq config broker_url`"
        case _:
            return ""


def _user() -> str:
    return f"uid {os.getuid()}"
