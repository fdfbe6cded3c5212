"""What the words of a worker's command line mean, and the reading of a plain one without click.

click, with the `inspect` and `ast` that it brings, is a fifth of a worker's start, and 3 MiB of
a worker for as long as it runs. Nearly all workers are started by a few words in which nothing
is wrong: those are read here. What is not known here, or is wrong, click reads, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Final, NamedTuple

POOLS = ("prefork", "threads", "asyncio", "solo")
GREEN = ("eventlet", "gevent")
POOL_ALIASES = {"processes": "prefork", "fork": "prefork", "thread": "threads"}
LEVELS = ("debug", "info", "warning", "error", "critical", "fatal")
FORMATS = ("text", "json")


def concurrency(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is neither a number above 0 nor auto")
    return int(text)


def pool(text: str) -> str:
    name = POOL_ALIASES.get(text.lower(), text.lower())
    if name not in POOLS:
        instead = "; asyncio runs many tasks at once" if name in GREEN else ""
        raise ValueError(f"{text!r} is none of {', '.join(POOLS)}{instead}")
    return name


def autoscale(text: str) -> tuple[int, int]:
    """Return the most and the least children of `MAX,MIN`, or of `MAX`, which means 1."""
    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"{text!r} is not MAX,MIN")
    most, least = max(map(int, parts)), min(map(int, parts)) if len(parts) == 2 else 1
    if most < 1:
        raise ValueError(f"{text!r}: a pool has one child at least")
    return most, max(least, 1)


def names(text: str) -> list[str]:
    """Return the names of `high,default`."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise ValueError(f"{text!r} has an empty name in it")
    return found


# Reading without click


class Plain(NamedTuple):
    """A worker's command line, read: options that all commands have, its own, settings."""

    common: Mapping[str, Any]
    own: Mapping[str, Any]
    settings: tuple[str, ...]


def plain(words: Sequence[str], environ: Mapping[str, str]) -> Plain | None:
    """Read the command line of a worker, as click would. None if click is to read it: it is
    another command's, has an option that is not known here, or something wrong in it."""
    if "worker" not in words or not _SAID_ELSEWHERE.isdisjoint(environ):
        return None
    common: dict[str, Any] = {}
    own: dict[str, Any] = {}
    settings: list[str] = []
    begun = False
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            if begun:
                settings.append(word)
            elif word != "worker":
                return None
            begun = True
            continue
        found, value = _option(word)
        into = common if found in _COMMON else own if begun else None
        if into is None or found not in _OPTIONS:
            return None
        name, read = _OPTIONS[found]
        if read is None:
            if value is not None:
                return None
            into[name] = True
            continue
        if value is None:
            value = next(rest, "-")
            if value.startswith("-"):  # it may be meant so: click knows
                return None
        try:
            into[name] = read(value)
        except ValueError:
            return None
    return Plain(common, own, tuple(settings)) if begun else None


def _option(word: str) -> tuple[str, str | None]:
    """Part `--name=value` and `-nvalue`."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name, value if equals else None
    return word[:2], word[2:] or None


def _level(text: str) -> str:
    return LEVELS[LEVELS.index(text.lower())]


def _format(text: str) -> str:
    return FORMATS[FORMATS.index(text)]


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(text)
    return int(text)


def _seconds(text: str) -> float:
    if not 0 < float(text) < inf:
        raise ValueError(text)
    return float(text)


# Set where a shell completes words, and where queues are not said on the command line.
_SAID_ELSEWHERE: Final = {"_LITEQ_COMPLETE", "LITEQ_QUEUES"}
_COMMON: Final = {
    "-A", "--app", "-b", "--broker", "--workdir", "-C", "--no-color", "-q", "--quiet",
    "-v", "--verbose",
}  # fmt: skip

# What each option is called by the worker, and what reads its value (None: it has none).
_OPTIONS: Final[Mapping[str, tuple[str, Callable[[str], Any] | None]]] = {
    "-A": ("app", str),
    "--app": ("app", str),
    "-b": ("broker", str),
    "--broker": ("broker", str),
    "--workdir": ("workdir", str),
    "-C": ("no_color", None),
    "--no-color": ("no_color", None),
    "-q": ("quiet", None),
    "--quiet": ("quiet", None),
    "-v": ("verbose", None),
    "--verbose": ("verbose", None),
    "-c": ("concurrency", concurrency),
    "--concurrency": ("concurrency", concurrency),
    "-P": ("pool", pool),
    "--pool": ("pool", pool),
    "-Q": ("queues", names),
    "--queues": ("queues", names),
    "-X": ("exclude_queues", names),
    "--exclude-queues": ("exclude_queues", names),
    "-n": ("hostname", str),
    "--hostname": ("hostname", str),
    "-l": ("loglevel", _level),
    "--loglevel": ("loglevel", _level),
    "-I": ("include", names),
    "--include": ("include", names),
    "--time-limit": ("time_limit", _seconds),
    "--soft-time-limit": ("soft_time_limit", _seconds),
    "--max-tasks-per-child": ("max_tasks_per_child", _number),
    "--max-memory-per-child": ("max_memory_per_child", _number),
    "--autoscale": ("autoscale", autoscale),
    "--burst": ("burst", None),
    "--grace": ("grace", _seconds),
    "--pidfile": ("pidfile", str),
    "-f": ("logfile", str),
    "--logfile": ("logfile", str),
    "--log-format": ("log_format", _format),
    "-B": ("beat", None),
    "--beat": ("beat", None),
    "--metrics-port": ("metrics_port", str),
}
