"""Commands to workers: which there are, and how a command and its reply travel.

A command is one letter in the store (JSON under a line with its signature), addressed to
one worker; the reply goes to the mailbox of who asked. Whoever may write to the store can
leave a letter, so a worker asks two things before it obeys: whether its settings allow
the command (`worker_enable_remote_control`), and, where there is a `control_secret`, whether
the letter was signed with it, lately, for this worker, and for the first time.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar, overload

__all__ = [
    "CODE_LIMIT",
    "Command",
    "ControlCommand",
    "Forged",
    "Keys",
    "Panel",
    "Reply",
    "Tickets",
    "control_command",
    "inspect_command",
]

F = TypeVar("F", bound=Callable[..., Any])

CODE_LIMIT: Final = 1_048_576  # bytes of a command or reply that anybody decodes
_VERSION: Final = 1
_UNSIGNED: Final = b"-"
_MAILBOX: Final = re.compile(r"[A-Za-z0-9_-]{1,100}").fullmatch
_TICKETS: Final = 10_000  # signed commands that a worker obeys within their time at most


class Forged(Exception):
    """A letter that is not from who may send it, or is no letter of ours."""


# Which commands there are


class ControlCommand(NamedTuple):
    """A command that workers know. `kind`: "inspect" only looks, "control" changes.

    `args`: names and types of its arguments, for the command line; `variadic`: the name of
    the one that takes the rest. `signature` is what its help shows.
    """

    name: str
    run: Callable[..., Any]
    kind: Literal["inspect", "control"]
    args: tuple[tuple[str, Callable[[str], Any]], ...] = ()
    variadic: str | None = None
    signature: str | None = None
    default_timeout: float = 1.0

    @property
    def help(self) -> str:
        """The first line of its docstring."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]


class Panel:
    """The commands by name. Names and decorators are Celery's."""

    data: dict[str, Callable[..., Any]] = {}  # noqa: RUF012 (Celery's name for it)
    meta: dict[str, ControlCommand] = {}  # noqa: RUF012

    @classmethod
    def register(cls, *args: Any, **kwargs: Any) -> Any:
        """Register a control command: Celery's older word for `control_command`."""
        return control_command(*args, **kwargs)

    @classmethod
    def add(cls, command: ControlCommand) -> None:
        """Enter a command, in place of one that has its name."""
        cls.data[command.name] = command.run
        cls.meta[command.name] = command


@overload
def control_command(fun: F, /) -> F: ...
@overload
def control_command(
    *,
    args: Sequence[tuple[str, Callable[[str], Any]]] = ...,
    variadic: str | None = ...,
    signature: str | None = ...,
    name: str | None = ...,
    alias: str | None = ...,
    default_timeout: float = ...,
    **ignored: Any,
) -> Callable[[F], F]: ...
def control_command(fun: Any = None, /, **options: Any) -> Any:
    """Make a function a command that changes a worker.

    The function gets a `State` first (`app`, `hostname`, `worker`), then the arguments by
    name, and returns the reply: JSON, as a rule `{"ok": …}` or `{"error": …}`. It is run by
    the worker's own loop, which waits for it: keep it short. `args` are pairs of name and
    type, for `liteq control NAME ARG…`.
    """
    return _register(fun, "control", options)


@overload
def inspect_command(fun: F, /) -> F: ...
@overload
def inspect_command(
    *,
    args: Sequence[tuple[str, Callable[[str], Any]]] = ...,
    variadic: str | None = ...,
    signature: str | None = ...,
    name: str | None = ...,
    alias: str | None = ...,
    default_timeout: float = ...,
    **ignored: Any,
) -> Callable[[F], F]: ...
def inspect_command(fun: Any = None, /, **options: Any) -> Any:
    """Make a function a command that looks at a worker and changes nothing: see
    `control_command`. Allowed where remote control is "read-only", too."""
    return _register(fun, "inspect", options)


def _register(fun: Any, kind: Literal["inspect", "control"], options: dict[str, Any]) -> Any:
    if fun is None:
        return lambda fun: _register(fun, kind, options)
    if not callable(fun):
        raise TypeError(f"a command must be a function, not {fun!r}")
    names = [options.get("name") or fun.__name__]
    if options.get("alias"):
        names.append(options["alias"])
    for name in names:
        Panel.add(
            ControlCommand(
                name,
                fun,
                kind,
                tuple((str(arg), type) for arg, type in options.get("args") or ()),
                options.get("variadic"),
                options.get("signature"),
                float(options.get("default_timeout") or 1.0),
            )
        )
    return fun


# How they travel


class Command(NamedTuple):
    """What a worker is told. `ticket` names this letter; `sent_at` is Unix seconds."""

    method: str
    arguments: Mapping[str, Any]
    ticket: str
    sent_at: float
    reply_to: str | None = None


class Reply(NamedTuple):
    """What a worker said to the command of this ticket."""

    ticket: str
    worker: int
    body: Any


class Keys:
    """The secrets that letters are signed with: the first signs, all of them are good.

    Without any, letters are not signed, and nobody is asked for a signature.
    """

    def __init__(self, secrets: str | bytes | Iterable[str | bytes] | None) -> None:
        if isinstance(secrets, (str, bytes)):
            secrets = [secrets]
        self._keys = tuple(
            one.encode() if isinstance(one, str) else one for one in secrets or () if one
        )

    def __bool__(self) -> bool:
        return bool(self._keys)

    def stamp(self, signal: str, id: str) -> str:
        """Return a signal's name as it is asked for: with a signature, if we sign."""
        if not self._keys:
            return signal
        return f"{signal} {self._sign(self._keys[0], f'terminate {id} {signal}', b'')}"

    def stamped(self, text: str, id: str) -> str | None:
        """Return the signal's name in such a text, None if it may not be obeyed."""
        signal, _, signature = text.partition(" ")
        if self._keys and not self._is_signed(signature, f"terminate {id} {signal}", b""):
            return None
        return signal

    def command(self, command: Command, to: int) -> bytes:
        """Return the letter that tells this worker a command."""
        return self._seal(f"command {to}", {"v": _VERSION, **command._asdict()})

    def read_command(self, letter: bytes, to: int) -> Command:
        """Return the command in a letter to this worker. Raises `Forged`."""
        fields = self._open(letter, f"command {to}")
        try:
            return Command(
                method=str(fields["method"]),
                arguments=dict(fields["arguments"]),
                ticket=str(fields["ticket"]),
                sent_at=float(fields["sent_at"]),
                reply_to=_mailbox(fields["reply_to"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise Forged(f"it is not a command: {exc!r:.200}") from exc

    def reply(self, reply: Reply) -> bytes:
        """Return the letter that brings a reply."""
        return self._seal(f"reply {reply.ticket}", {"v": _VERSION, **reply._asdict()})

    def read_reply(self, letter: bytes, ticket: str) -> Reply:
        """Return the reply to the command of this ticket. Raises `Forged`."""
        fields = self._open(letter, f"reply {ticket}")
        try:
            return Reply(str(fields["ticket"]), int(fields["worker"]), fields["body"])
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise Forged(f"it is not a reply: {exc!r:.200}") from exc

    def _seal(self, about: str, fields: Mapping[str, Any]) -> bytes:
        body = json.dumps(fields, default=repr).encode()
        signature = _UNSIGNED
        if self._keys:
            signature = self._sign(self._keys[0], about, body).encode()
        return signature + b"\n" + body

    def _open(self, letter: bytes, about: str) -> dict[str, Any]:
        if len(letter) > CODE_LIMIT:
            raise Forged(f"it is longer than {CODE_LIMIT} bytes")
        signature, _, body = letter.partition(b"\n")
        if self._keys and not self._is_signed(signature.decode("latin-1"), about, body):
            raise Forged("it is not signed with the control_secret")
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise Forged(f"it is not JSON: {exc}") from exc
        if not isinstance(fields, dict) or fields.get("v") != _VERSION:
            raise Forged("it is of another version of liteq")
        return fields

    def _is_signed(self, signature: str, about: str, body: bytes) -> bool:
        import hmac  # late: it brings OpenSSL, which nobody needs who signs nothing

        given = signature.encode("latin-1", "replace")
        return any(
            hmac.compare_digest(self._sign(key, about, body).encode(), given)
            for key in self._keys
        )

    @staticmethod
    def _sign(key: bytes, about: str, body: bytes) -> str:
        import hmac

        return hmac.new(key, about.encode() + b"\0" + body, "sha256").hexdigest()


def _mailbox(name: Any) -> str | None:
    """Return the name of the mailbox that a reply goes to. It may become a part of a path."""
    if name is not None and not _MAILBOX(name):
        raise ValueError(f"no mailbox is called {name!r:.100}")
    found: str | None = name
    return found


class Tickets:
    """Tells a letter that comes a second time, or too late: a copy that somebody kept."""

    def __init__(self, good_for: float) -> None:
        self._good_for = good_for
        self._seen: dict[str, float] = {}  # when each is forgotten, oldest first

    def check(self, command: Command, now: float) -> None:
        """Raise `Forged` unless the command is fresh. Clocks may differ a minute."""
        if not -60.0 <= now - command.sent_at <= self._good_for:
            raise Forged(f"it was sent {now - command.sent_at:.0f} s ago")
        for ticket, until in list(self._seen.items()):
            if until > now:
                break
            del self._seen[ticket]
        if command.ticket in self._seen:
            raise Forged("it was obeyed already")
        if len(self._seen) >= _TICKETS:
            raise Forged(f"{_TICKETS} others came within {self._good_for:g} s")
        self._seen[command.ticket] = now + self._good_for + 60.0
