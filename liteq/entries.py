"""A periodic entry: what to call, when, and what to do if that went wrong.

An entry is kept in the store as JSON, so that every beat can fire it, whichever program
made it. Only what JSON cannot carry (a schedule class of the user's, a `BeatLazyFunc`)
ties it to the beats of the app that declares it: such an entry is `local`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from math import isnan
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, get_args

from liteq import serializers
from liteq.canvas import Signature
from liteq.ciphers import Fingerprints
from liteq.exceptions import (
    DecodeError,
    EncodeError,
    LiteqError,
    NotRegistered,
    ScheduleError,
)
from liteq.loggers import get_logger
from liteq.redaction import default
from liteq.schedules import (
    LONGEST,
    SHORTEST,
    Timetable,
    crontab,
    from_spec,
    maybe_schedule,
    schedule,
    solar,
)
from liteq.task import Task

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.ciphers import Cipher
    from liteq.signing import Signer

__all__ = [
    "ENTRY_KEYS",
    "BeatLazyFunc",
    "CatchUp",
    "Decision",
    "Entry",
    "Overlap",
    "read",
    "renewed",
]

logger = get_logger("liteq.beat")

CatchUp: TypeAlias = Literal["one", "skip", "all"]
Overlap: TypeAlias = Literal["allow", "skip", "queue"]

VERSION: Final = 1
ENTRY_KEYS: Final = frozenset(
    {"task", "schedule", "args", "kwargs", "options", "relative", "tz", "catch_up", "overlap"}
)
_ON_TIME: Final = 60.0  # seconds: so late, a run was delayed and not missed
_TINY: Final = 1e-6
_AGAIN: Final = 1.0  # seconds until a schedule class is asked again that names no later time
_NATIVE: Final = (schedule, crontab, solar)


class BeatLazyFunc:
    """An argument of a periodic task that is worked out when it is sent: each time, the beat
    calls the function with these arguments."""

    def __init__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._func_params: dict[str, Any] = {"func": func, "args": args, "kwargs": kwargs}

    def __call__(self) -> Any:
        return self.delay()

    def delay(self) -> Any:
        return self._func_params["func"](
            *self._func_params["args"], **self._func_params["kwargs"]
        )

    def __repr__(self) -> str:
        func = self._func_params["func"]
        shown = default().sources(self._func_params["args"], self._func_params["kwargs"])
        return f"{getattr(func, '__qualname__', func)}({', '.join(shown)})"


class Decision(NamedTuple):
    """What is to be done about an instant that has come: fire it or pass it over, and when
    the next one is (None: never again)."""

    fires: bool
    next_due_at: float | None


@dataclass(frozen=True)
class Entry:
    """A periodic entry. `task` is a name; `canvas` a workflow as a dictionary, in place of
    task and arguments."""

    name: str
    task: str
    schedule: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    canvas: dict[str, Any] | None = None
    catch_up: CatchUp = "one"
    overlap: Overlap = "allow"
    app: str = ""

    @classmethod
    def of(cls, app: Liteq, name: Any, given: Mapping[str, Any]) -> Entry:
        """Return the entry that a dictionary as in `beat_schedule` describes.

        Raises `ScheduleError`, which names the entry, if it is invalid; whether its task is
        there, `check()` tells.
        """
        if not isinstance(name, str) or not name:
            raise ScheduleError(f"a periodic entry needs a name, not {name!r}")
        try:
            return cls._of(app, name, given)
        except (ValueError, TypeError, LiteqError) as exc:
            raise ScheduleError(f"periodic entry {name!r}: {exc}") from exc

    @classmethod
    def _of(cls, app: Liteq, name: str, given: Mapping[str, Any]) -> Entry:
        if not isinstance(given, Mapping):
            raise TypeError(f"it must be a dictionary with task and schedule, not {given!r}")
        for key in given.keys() - ENTRY_KEYS:
            near = get_close_matches(str(key), sorted(ENTRY_KEYS), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"an entry has no {key!r}{hint}")
        if missing := {"task", "schedule"} - given.keys():
            raise ValueError(f"it needs {' and '.join(sorted(missing))}")
        when = maybe_schedule(
            given["schedule"], bool(given.get("relative", False)), app, given.get("tz")
        )
        made = cls(
            name=name,
            task="",
            schedule=when,
            args=tuple(_sequence("args", given.get("args"))),
            kwargs=dict(given.get("kwargs") or {}),
            options=dict(given.get("options") or {}),
            catch_up=_choice("catch_up", given.get("catch_up"), "one", CatchUp),
            overlap=_choice("overlap", given.get("overlap"), "allow", Overlap),
            app=app.main or "",
        )
        return made._calling(given["task"])

    def _calling(self, task: Any) -> Entry:
        """Return this entry with the task, signature or workflow that it calls."""
        match task:
            case Signature() if task.subtask_type:
                return replace(self, task=task.task, canvas=dict(task))
            case Signature():
                return replace(
                    self,
                    task=task.task,
                    args=self.args or tuple(task.args),
                    kwargs={**task.kwargs, **self.kwargs},
                    options={**task.options, **self.options},
                )
            case Task():
                return replace(self, task=str(task.name))
            case str() if task:
                return replace(self, task=task)
        raise TypeError(f"task must be a name, a task or a signature, not {task!r}")

    def check(self, app: Liteq) -> Entry:
        """Raise `ScheduleError` if the entry cannot be fired: its task is missing among
        others of its module, its arguments do not fit, or an option does not exist. Return
        the entry. A task of a module that is not loaded here may be one that only workers
        know: that is a warning."""
        if self.canvas is None and self.task not in app.tasks:
            self._miss_task(app)
        if not self._is_lazy():
            try:
                self.compose(app, 0.0)
            except (ValueError, TypeError, LiteqError) as exc:
                raise ScheduleError(f"periodic entry {self.name!r}: {exc}") from exc
        return self

    def _miss_task(self, app: Liteq) -> None:
        """Refuse the name of a task that should be here: others of its module are."""
        modules = {name.rpartition(".")[0] for name in app.tasks.own()}
        if self.task.rpartition(".")[0] in modules:
            try:
                app.tasks[self.task]
            except NotRegistered as exc:
                raise ScheduleError(f"periodic entry {self.name!r}: {exc}") from None
        logger.warning(
            "periodic entry %r: this program has no task %r; it is sent anyway, because a "
            "worker may have it",
            self.name,
            self.task,
        )

    # When

    @property
    def timetable(self) -> Timetable | None:
        """The schedule, if it is one of ours; None for a class of the user's."""
        return self.schedule if type(self.schedule) in _NATIVE else None

    def first(self, now: float) -> float | None:
        """Return the first instant of the entry if it is made now."""
        if self.timetable is not None:
            return self.timetable.first(now)
        due, seconds = self._ask(now)
        return now if due else now + seconds

    def decide(
        self, due: float, now: float, *, last: float | None, deadline: float | None
    ) -> Decision:
        """Say what to do about the instant `due`, which has come.

        `last` is when the entry ran last. `deadline`: a crontab that is more seconds late
        than this is skipped.
        """
        when = self.timetable
        if when is None:
            fires, seconds = self._ask(due if last is None else last)
            return Decision(fires, now + seconds)
        if not isinstance(when, crontab):
            deadline = None
        if self.catch_up == "all":
            if deadline is None or now - due <= deadline:
                return Decision(fires=True, next_due_at=when.following(due, due))
            return Decision(False, when.following(due, now - deadline - _TINY))
        if self.catch_up == "skip" and deadline is None:
            deadline = _ON_TIME
        fires = True
        if deadline is not None and now - due > deadline:
            latest = when.following(due, now - deadline - _TINY)
            fires = latest is not None and latest <= now
        return Decision(fires, when.following(due, now))

    def _ask(self, last: float) -> tuple[bool, float]:
        """Ask a class of the user's whether it is due, and in how many seconds to ask again:
        above zero, so that it does not keep the beat from sleeping.

        One that is due may have counted down to this moment and below. Raises `ValueError`
        for another that is to be asked in the past.
        """
        due, given = self.schedule.is_due(datetime.fromtimestamp(last, UTC))
        seconds = float(given)
        if isnan(seconds) or (seconds < 0 and not due):
            raise ValueError(
                f"is_due() of {_shown(self.schedule)} returned {(due, given)!r}: the second "
                "must be the number of seconds until it is asked again"
            )
        return bool(due), min(max(seconds, SHORTEST), LONGEST) if seconds > 0 else _AGAIN

    def __repr__(self) -> str:
        return f"<Entry {self.name}: {self.call}>"  # not the fields: they may hold secrets

    # What

    def compose(self, app: Liteq, due: float) -> Any:
        """Return the messages, edges and workflow that a fire of the entry enqueues.
        Arguments that are `BeatLazyFunc`s are worked out now."""
        headers = {
            **(self.options.get("headers") or {}),
            "celery_beat_task": True,
            "periodic_task_name": self.name,
            "periodic_task_due": due,
        }
        options = {**self.options, "headers": headers}
        if self.canvas is not None:
            return app.sender.compose(
                Signature.from_dict(self.canvas, app=app), options=options
            )
        args = [arg() if isinstance(arg, BeatLazyFunc) else arg for arg in self.args]
        kwargs = {
            name: value() if isinstance(value, BeatLazyFunc) else value
            for name, value in self.kwargs.items()
        }
        call: Signature[Any] = Signature(self.task, args, kwargs, app=app)
        return app.sender.compose(call, options=options)

    def _is_lazy(self) -> bool:
        return any(isinstance(v, BeatLazyFunc) for v in (*self.args, *self.kwargs.values()))

    @property
    def call(self) -> str:
        """The call as source text, what is secret by its name or type hidden."""
        return self.written()

    def written(self, app: Liteq | None = None) -> str:
        """Return the call as source text, its parameters as an app knows them (default: the
        current one)."""
        if self.canvas is not None:
            return Signature.from_dict(self.canvas, app=app).shown(0)
        call: Signature[Any] = Signature(self.task, self.args, self.kwargs, app=app)
        return call.shown(0)

    # In the store

    def dumps(self, signer: Signer | None = None, cipher: Cipher | None = None) -> bytes:
        """Return the entry as the store keeps it, signed if there is a signer, its secrets
        encrypted if there is a cipher with keys. Raises `EncodeError` for what JSON cannot
        carry, naming it."""
        if self.timetable is None:
            raise EncodeError(
                f"the schedule of the periodic entry {self.name!r} is a "
                f"{type(self.schedule).__name__}, which only the program that has the class "
                "can read: declare the entry in its beat_schedule"
            )
        return self._sealed(self._fields(self.timetable.spec()), signer, cipher)

    def dumps_declared(
        self, signer: Signer | None = None, cipher: Cipher | None = None
    ) -> bytes:
        """Return a declared entry as the store keeps it: what JSON cannot carry is shown
        there, and known to the beats of its app alone."""
        try:
            return self.dumps(signer, cipher)
        except EncodeError:
            when = self.timetable
            shown = self._fields(
                {"kind": "custom", "repr": _shown(self.schedule)}
                if when is None
                else when.spec()
            )
            shown["args"] = [_shown(arg) for arg in self.args]
            shown["kwargs"] = {name: _shown(value) for name, value in self.kwargs.items()}
            shown["options"] = {name: _shown(value) for name, value in self.options.items()}
            return self._sealed({**shown, "local": True}, signer, cipher)

    def is_stored_as(self, data: bytes, app: Liteq) -> bool:
        """Tell whether the store has a declared entry as it would be written now. What is
        encrypted differs each time, and is compared by its fingerprint under the first key: a
        declared entry is written anew when keys are exchanged, or were not there before."""
        own = self.dumps_declared(app.signer, app.cipher)
        if own == data:
            return True
        if _ENCRYPTED not in own or own.count(_ENCRYPTED) != data.count(_ENCRYPTED):
            return False
        newest = Fingerprints(app.cipher.newest())
        try:
            if app.signer is not None:
                app.signer.open(data, _owner(self.name))
            one, other = (serializers.dumps(read(each), cipher=newest) for each in (own, data))
        except DecodeError:
            return False
        return one == other

    def _sealed(
        self, fields: dict[str, Any], signer: Signer | None, cipher: Cipher | None
    ) -> bytes:
        data = serializers.dumps(fields, root=self.name, cipher=cipher)
        return data if signer is None else signer.seal(data, _owner(self.name))

    def _fields(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "v": VERSION,
            "app": self.app,
            "task": self.task,
            "schedule": dict(spec),
            "args": list(self.args),
            "kwargs": self.kwargs,
            "options": self.options,
            "canvas": self.canvas,
            "catch_up": self.catch_up,
            "overlap": self.overlap,
        }

    @classmethod
    def loads(cls, name: str, data: bytes, app: Liteq) -> Entry | None:
        """Return a stored entry; None if it is local to the app that declares it. Its secrets
        stay encrypted, and go so into the calls that are made of it: a beat needs no keys.

        Raises `DecodeError` for bytes that are damaged or of a later version, or have no
        valid signature where they need one, and `ValueError` for invalid values.
        """
        if app.signer is not None:
            data = app.signer.open(data, _owner(name))
        found = read(data)
        if found.get("local"):
            return None
        try:
            return cls(
                name=name,
                task=found["task"],
                schedule=from_spec(found["schedule"], app),
                args=tuple(found["args"]),
                kwargs=found["kwargs"],
                options=found["options"],
                canvas=found["canvas"],
                catch_up=_choice("catch_up", found["catch_up"], "one", CatchUp),
                overlap=_choice("overlap", found["overlap"], "allow", Overlap),
                app=found["app"],
            )
        except (KeyError, TypeError) as exc:
            raise DecodeError(f"the periodic entry {name!r} is damaged: {exc!r}") from exc


def read(data: bytes) -> dict[str, Any]:
    """Return the fields of a stored entry, its signature unchecked, its secrets encrypted as
    they are. Raises `DecodeError`."""
    from liteq.signing import unsealed  # late: hashlib is 3 ms

    found = serializers.loads(unsealed(data))
    if not isinstance(found, dict) or not isinstance(found.get("v"), int):
        raise DecodeError(f"this is not a periodic entry: {data[:200]!r}")
    if found["v"] > VERSION:
        raise DecodeError(
            f"the periodic entry was written by a later liteq (version {found['v']}, this one "
            f"reads up to {VERSION}): upgrade this beat"
        )
    return found


def renewed(name: str, data: bytes, app: Liteq) -> bytes:
    """Return a stored entry as it is signed, and its secrets are encrypted, with the first of
    the keys. Raises `InvalidSignature` for one that has no valid signature where it needs one,
    and `DecodeError` for one that cannot be read."""
    signer, cipher, owner = app.signer, app.cipher, _owner(name)
    opened = data if signer is None else signer.open(data, owner)
    fields = read(opened)
    if cipher.has_keys and fields.get("app") == (app.main or ""):  # others may have other keys
        again = serializers.dumps(fields, root=name, cipher=cipher)
        if again != opened:
            return again if signer is None else signer.seal(again, owner)
    return data if signer is None else signer.renew(data, owner)


_ENCRYPTED: Final = b'["encrypted","'  # what a text has of it is written with backslashes


def _owner(name: str) -> str:
    """Return whose value the bytes of an entry are signed as: no task's id is like this."""
    return f"periodic entry\n{name}"


def _sequence(name: str, given: Any) -> Sequence[Any]:
    if given is None:
        return ()
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} must be a list or a tuple, not {given!r}")
    return given


def _choice(name: str, given: Any, default: str, words: Any) -> Any:
    if given is None:
        return default
    if given not in get_args(words):
        raise ValueError(f"{name} must be one of {', '.join(get_args(words))}, not {given!r}")
    return given


def _shown(value: Any) -> str:
    """Return the repr of a value, without addresses: it is to be the same in each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
