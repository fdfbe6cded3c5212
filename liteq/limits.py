"""Limits: how often, and how many at once, tasks may be started over all workers.

A user writes `Rate` and `Concurrency`, or their short forms; `declared()` reads them into
what the store decides by, a `Limit` with a name. Each name and key is a *bucket* of its own.
A message carries the names and keys of the buckets it is under (`Message.limits`); what a
name allows is said to the store by the workers, so that a changed rate holds for what waits
already as soon as a worker with the changed code starts.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from liteq.ciphers import KEYLESS, Cipher, Fingerprints
from liteq.exceptions import ImproperlyConfigured
from liteq.redaction import Secret
from liteq.serializers import dumps
from liteq.tagging import MARK

__all__ = [
    "UNKNOWN",
    "Concurrency",
    "Declared",
    "Keys",
    "Limit",
    "LimitInfo",
    "MaxConcurrency",
    "Pairs",
    "Rate",
    "RateLimit",
    "allowed_text",
    "checked",
    "declared",
    "key_text",
    "limits_by_task",
    "limits_text",
    "merged",
    "rate_limit_of",
    "read",
    "warn_unreadable",
    "write",
]

Key: TypeAlias = Callable[..., Any] | str | None
OneRate: TypeAlias = "str | float | Rate | Mapping[str, Any]"
RateLimit: TypeAlias = "OneRate | Sequence[OneRate] | None"
MaxConcurrency: TypeAlias = "int | Concurrency | Sequence[int | Concurrency] | None"
Pairs: TypeAlias = tuple[tuple[str, str | None], ...]  # names and keys; None: not under it

MAX_KEY: Final = 250  # characters
_PERIODS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST: Final = 100 * 365.25 * 86400.0  # seconds that a burst takes; the stores count them
_HOW: Final = (
    'a rate is a number of starts per second, or text such as "100/m" (s, m, h or d), with '
    'a burst "100/m;burst=20", or a Rate'
)


class Limit(NamedTuple):
    """What one name allows, for each of its keys.

    `interval`: seconds between two starts, of which `burst` may be saved up (None: no
    rate). `most`: how many may run at once (None: any number). `per_worker`: each worker
    counts for itself. With neither of the two it is a limit that allows everything.
    """

    name: str
    interval: float | None = None
    burst: int = 1
    most: int | None = None
    per_worker: bool = False


class LimitInfo(NamedTuple):
    """A limit as the store knows it: as code declares it, and as an operator overrides it
    (both None where there is none). `tasks`: those that are under it."""

    name: str
    declared: Limit | None
    override: Limit | None
    tasks: tuple[str, ...]

    @property
    def in_force(self) -> Limit | None:
        return self.override or self.declared


class Rate:
    """A number of starts in a time: `Rate("100/m", burst=20, key="user_id")`.

    `rate`: starts per second, or text: "100/m". Starts are evenly spaced; with `burst`, up to
    that many are saved up while there is nothing to start, and then go at once. `key`: the
    name of an argument, or a function of the arguments: the rate holds separately for each
    value, and not at all for None. `scope`: "global" (over all workers) or "worker" (each
    worker for itself, as in Celery). `name`: tasks that use the same name share the limit.
    """

    __slots__ = ("burst", "interval", "key", "name", "scope")

    def __init__(
        self,
        rate: str | float,
        *,
        burst: int | None = None,
        key: Key = None,
        scope: Literal["global", "worker"] = "global",
        name: str | None = None,
    ) -> None:
        interval, said = _read_rate(rate)
        burst = said if burst is None else burst
        if type(burst) is not int or burst < 1:
            raise ValueError(f"burst must be a whole number of 1 or more, not {burst!r}")
        if interval is not None and burst > _LONGEST / interval:
            raise ValueError(
                f"the rate {rate!r} cannot have a burst of {burst}: to save that up would take "
                "more than a hundred years"
            )
        if scope not in ("global", "worker"):
            raise ValueError(f'scope must be "global" or "worker", not {scope!r}')
        if scope == "worker" and key is not None:
            raise ValueError('a rate with scope="worker" cannot have a key')
        self.interval = interval
        self.burst = burst
        self.key = _checked_key(key)
        self.scope = scope
        self.name = _checked_name(name)

    def __repr__(self) -> str:
        each = "unlimited" if self.interval is None else f"one each {self.interval:g} s"
        return f"<Rate {each}, burst {self.burst}, {self.scope}>"


class Concurrency:
    """A number of runs at once: `Concurrency(3, key="account")`. `key`, `name`: as for
    `Rate`."""

    __slots__ = ("key", "most", "name")

    def __init__(self, most: int, *, key: Key = None, name: str | None = None) -> None:
        if type(most) is not int or most < 1:
            raise ValueError(
                f"max_concurrency must be a whole number of 1 or more, not {most!r}: to keep a "
                "task from running, pause its queue"
            )
        self.most = most
        self.key = _checked_key(key)
        self.name = _checked_name(name)

    def __repr__(self) -> str:
        return f"<Concurrency {self.most}>"


class Declared(NamedTuple):
    """A limit of a task, and where its key comes from."""

    limit: Limit
    key: Key


class _Unknown:
    """An argument that is not known yet: the result of what a call waits for."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<a result that is not there yet>"


UNKNOWN: Final = _Unknown()


class Keys:
    """Works out what limits one call of a task is under, by its arguments. `fun` is the
    function whose parameters are meant by name; None: only keywords have names."""

    def __init__(self, found: Sequence[Declared], fun: Callable[..., Any] | None) -> None:
        self._declared = tuple(found)
        self._fun = fun
        self._signature: Any = None

    def text(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], cipher: Cipher | None = None
    ) -> str | None:
        """Return the limits of a message with these arguments, of which `UNKNOWN` stands
        for those that come later. Of a secret, `cipher` makes the key.

        Raises `ValueError` for a key that depends on those or is too long, `TypeError` for
        one that is not a plain value, and what a user's function raises.
        """
        pairs: list[tuple[str, str | None]] = []
        for limit, key in self._declared:
            value: Any = ""
            if isinstance(key, str):
                value = self._argument(key, args, kwargs)
            elif key is not None:
                value = self._called(key, args, kwargs)
            if value is UNKNOWN:
                raise self._unknown(limit.name)
            if isinstance(value, Secret):
                value = _fingerprint(value, cipher or KEYLESS)
            pairs.append((limit.name, key_text(value, limit.name)))
        return write(pairs)

    def _argument(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if name in kwargs or self._fun is None:
            return kwargs.get(name)
        if self._signature is None:
            import inspect  # late: 6 ms, for those who have keys

            self._signature = inspect.signature(self._fun)
        bound = self._signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        if name in bound.arguments:
            return bound.arguments[name]
        for value in bound.arguments.values():  # given as one of **kwargs
            if isinstance(value, dict) and name in value:
                return value[name]
        return UNKNOWN if UNKNOWN in args else None

    def _called(
        self, key: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        try:
            return key(*args, **kwargs)
        except Exception as exc:
            if UNKNOWN in args or UNKNOWN in kwargs.values():
                exc.add_note("a limit's key cannot depend on a result that is not there yet")
            raise

    @staticmethod
    def _unknown(name: str) -> ValueError:
        return ValueError(
            f"the key of the limit {name!r} is a result that is not there yet when the call is "
            "sent: give that argument with the signature"
        )


def _fingerprint(secret: Secret[Any], cipher: Cipher) -> str:
    """Return a key that is the same for each call with this secret: with encryption keys it
    says nothing of it, without them it is a plain hash. Raises `DecryptionError`."""
    data = dumps(secret, cipher=Fingerprints(cipher))
    if cipher.has_keys:
        return f"secret {json.loads(data)[MARK][1][:32]}"
    from hashlib import blake2b  # late: few limits have a secret as their key

    return f"secret {blake2b(data, digest_size=16).hexdigest()}"


def declared(
    task: str,
    *,
    rate_limit: Any = None,
    rate_limit_key: Key = None,
    max_concurrency: Any = None,
    concurrency_key: Key = None,
) -> tuple[Declared, ...]:
    """Read the options of a task.

    Raises `ValueError` or `TypeError` that names the invalid value and what is valid.
    """
    rates = [_rate(value, rate_limit_key) for value in _listed(rate_limit)]
    found = [
        Declared(
            Limit(
                rate.name or _numbered(f"{task}:rate", at),
                interval=rate.interval,
                burst=rate.burst,
                per_worker=rate.scope == "worker",
            ),
            rate.key,
        )
        for at, rate in enumerate(rate for rate in rates if rate.interval is not None)
    ]
    sizes = [_concurrency(value, concurrency_key) for value in _listed(max_concurrency)]
    found += [
        Declared(
            Limit(size.name or _numbered(f"{task}:concurrency", at), most=size.most), size.key
        )
        for at, size in enumerate(sizes)
    ]
    if rate_limit_key is not None and not rates:
        raise ValueError("rate_limit_key is given, but there is no rate_limit")
    if concurrency_key is not None and not sizes:
        raise ValueError("concurrency_key is given, but there is no max_concurrency")
    names = [one.limit.name for one in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two limits of one task have the name {min(twice)!r}")
    if any(one.limit.per_worker for one in found) and any(one.key for one in found):
        raise ValueError(
            'a rate with scope="worker" cannot be combined with a limit that has a key: make '
            "the rate a global one"
        )
    return tuple(found)


def rate_limit_of(name: str, rate: Any) -> Limit:
    """Return the limit of this name that a rate given at run time means; "0" and None mean
    one that allows everything. Raises `ValueError` or `TypeError` for an invalid rate."""
    found = None if rate is None else _rate(rate, None)
    if found is None or found.interval is None:
        return Limit(name)
    return Limit(name, found.interval, found.burst, per_worker=found.scope == "worker")


def allowed_text(limit: Limit) -> str:
    """Return what a limit allows, as it is written in code: "100/m;burst=20", or for a
    concurrency its number."""
    if limit.most is not None:
        return str(limit.most)
    if limit.interval is None:
        return "no limit"
    counts = [(seconds / limit.interval, unit) for unit, seconds in _PERIODS.items()]
    some = [found for found in counts if found[0] >= 1] or counts[-1:]
    whole = [found for found in some if abs(found[0] - round(found[0])) < 1e-6 * found[0]]
    number, unit = (whole or some)[0]
    burst = f";burst={limit.burst}" if limit.burst > 1 else ""
    return f"{number:.10g}/{unit}{burst}"


def limits_by_task(tasks: Mapping[str, Any]) -> dict[str, tuple[Limit, ...]]:
    """Return what each of these tasks is under, as a store is told it.

    Raises `ImproperlyConfigured` if two of them declare different limits under one name.
    """
    found: dict[str, tuple[Limit, ...]] = {}
    known: dict[str, tuple[Limit, str]] = {}
    for task, made in tasks.items():
        found[task] = tuple(one.limit for one in made.limits())
        for limit in found[task]:
            other, user = known.setdefault(limit.name, (limit, task))
            if other != limit:
                raise ImproperlyConfigured(
                    f"the tasks {user} and {task} share the limit {limit.name!r}, but declare "
                    f"it differently: {other} and {limit}"
                )
    return found


# What a message carries


def write(pairs: Iterable[tuple[str, str | None]]) -> str | None:
    """Return names and keys as `Message.limits`, None if there are none."""
    found = list(pairs)
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")) if found else None


@lru_cache(maxsize=4096)
def read(text: str) -> Pairs:
    """Return the names and keys of `Message.limits`. What another program wrote there, and
    nobody can read, names none: it must not end a worker."""
    try:
        return tuple((name, key) for name, key in json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return ()


def checked(limit: Limit) -> Limit:
    """Return a limit as it was read from a store. Raises `ValueError` for what cannot be one:
    a claim that counts by it would fail, again and again."""
    name, interval, burst, most, _ = limit
    if type(name) is not str:
        raise ValueError(f"no name: {name!r}")
    if interval is not None:
        if type(interval) not in (int, float) or not 0 < interval < math.inf:
            raise ValueError(f"no interval: {interval!r}")
        if type(burst) is not int or not 1 <= burst <= _LONGEST / max(interval, 1e-9):
            raise ValueError(f"no burst: {burst!r}")
    if most is not None and (type(most) is not int or most < 1):
        raise ValueError(f"no number of runs: {most!r}")
    return limit


def warn_unreadable(what: str, text: str) -> None:
    """Warn that something in the store cannot be read and is ignored."""
    from liteq.loggers import get_logger  # late: a third of what a sender loads

    get_logger("liteq.limits").warning(
        "%s damaged in the store and ignored: %.100r (`liteq limits set` or `reset`, or a "
        "worker that declares it, writes it anew)",
        what,
        text,
    )


def limits_text(text: str | None) -> str:
    """Say what limits a message is under, for people."""
    pairs = read(text) if text else ()
    shown = [f"{name} of {key}" if key else name for name, key in pairs if key is not None]
    return f"under {', '.join(shown)}" if shown else ""


def merged(text: str | None, names: Sequence[str]) -> str | None:
    """Return the limits of a message with those that all messages of its task are under,
    without a key where it names none."""
    pairs = read(text) if text else ()
    known = {name for name, _ in pairs}
    missing = [name for name in names if name not in known]
    if not missing:
        return text
    return write([*pairs, *((name, "") for name in missing)])


def key_text(value: Any, name: str) -> str | None:
    """Return the key of a bucket as text, None for none.

    Raises `ValueError` if it is too long, `TypeError` if it is not a plain value.
    """
    if value is None:
        return None
    if isinstance(value, str):
        text = value
    elif isinstance(value, bytes | list | dict | set | tuple):
        raise TypeError(
            f"the key of the limit {name!r} must be one plain value, such as a name or a "
            f"number, not {type(value).__name__}"
        )
    else:
        text = str(value)
    if len(text) > MAX_KEY:
        raise ValueError(
            f"the key of the limit {name!r} has {len(text)} characters, more than the "
            f"{MAX_KEY} allowed: {text[:40]!r}…"
        )
    return text


# Reading what users write


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _rate(value: Any, key: Key) -> Rate:
    if isinstance(value, Rate):
        if key is not None and value.key is None and value.scope == "global":
            return _keyed(value, key)
        return value
    if isinstance(value, Mapping):
        unknown = value.keys() - {"rate", "burst", "key", "scope", "name"}
        if unknown or "rate" not in value:
            raise ValueError(f"{dict(value)!r} is not a rate limit: {_HOW}")
        return Rate(**{"key": key, **value})
    return Rate(value, key=key)


def _keyed(rate: Rate, key: Key) -> Rate:
    copy: Rate = object.__new__(Rate)
    for name in Rate.__slots__:
        setattr(copy, name, getattr(rate, name))
    copy.key = _checked_key(key)
    return copy


def _concurrency(value: Any, key: Key) -> Concurrency:
    if isinstance(value, Concurrency):
        return (
            value
            if value.key is not None
            else Concurrency(value.most, key=key, name=value.name)
        )
    return Concurrency(value, key=key)


def _read_rate(value: Any) -> tuple[float | None, int]:
    """Return the interval (None: no limit) and the burst of a rate."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is not a rate: {_HOW}")
    burst = 1
    text = str(value).strip()
    if isinstance(value, str) and ";" in value:
        text, _, option = (part.strip() for part in value.partition(";"))
        word, _, number = (part.strip() for part in option.partition("="))
        if word != "burst" or not number.isdigit() or int(number) < 1:
            raise ValueError(f"{value!r} is not a rate: {_HOW}")
        burst = int(number)
    count, slash, unit = text.partition("/")
    period = _PERIODS.get(unit.strip() or "s") if slash == "" or unit.strip() else None
    try:
        number_of = float(count)
    except ValueError:
        number_of = math.nan
    if period is None or not math.isfinite(number_of) or number_of < 0:
        raise ValueError(f"{value!r} is not a rate: {_HOW}")
    return (period / number_of if number_of else None), burst


def _checked_key(key: Any) -> Key:
    if key is None or callable(key):
        return key  # type: ignore[no-any-return]
    if isinstance(key, str) and key.isidentifier():
        return key
    raise TypeError(
        f"the key of a limit must be the name of an argument or a function of the arguments, "
        f"not {key!r}"
    )


def _checked_name(name: Any) -> str | None:
    if name is None:
        return None
    if isinstance(name, str) and name and name.isprintable() and len(name) <= MAX_KEY:
        return name
    raise ValueError(f"the name of a limit must be a short printable text, not {name!r}")


def _numbered(name: str, at: int) -> str:
    return name if not at else f"{name}{at + 1}"
