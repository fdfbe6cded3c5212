"""What must not be shown: secrets are hidden from logs, tables, events and reprs.

A value is secret by its type (`Secret`), or by the name that it goes by: that of a
parameter, of a key in a dict, of a field of a dataclass or model, of a setting. What is
stored for the task to read, the body of its message, stays as it is: this is about
display. Passwords in URLs are hidden wherever a text is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, Final, Generic, TypeAlias, TypeVar

from liteq.exceptions import DecryptionError

__all__ = [
    "HIDDEN",
    "NAMES",
    "Encrypted",
    "Redactor",
    "Secret",
    "default",
    "hide",
    "is_secret_setting",
    "mask_url",
]

T = TypeVar("T")

# What is known of a task by its name: its positional parameters, and which are sensitive.
Tasks: TypeAlias = Callable[[str], tuple[Sequence[str], str | Iterable[str]] | None]

HIDDEN: Final = "********"

# Names of what is secret. One of these words, or several in a row, somewhere in a name:
# "db_password", "apiKey", "X-Auth-Token".
NAMES: Final = (
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "secrets",
    "token",
    "tokens",
    "api_key",
    "api_keys",
    "apikey",
    "access_key",
    "private_key",
    "signing_key",
    "encryption_key",
    "secret_key",
    "authorization",
    "credential",
    "credentials",
    "cookie",
    "cookies",
    "session_id",
    "cvv",
    "card_number",
)

_TEXT_LIMIT: Final = 1024  # characters of a repr, as Celery's resultrepr_maxsize
_DEPTH: Final = 16  # levels of a value that are shown
_LEAST_SECRET: Final = 6  # characters: a shorter text would be hidden in any other word
_PLAIN: Final = (int, float, complex, bool, type(None))
# Modules whose values say nothing but themselves in their repr.
_HARMLESS: Final = frozenset({"datetime", "decimal", "uuid", "zoneinfo", "pathlib", "enum"})


class Encrypted:
    """What a `Secret` holds that was read and not decrypted: its token."""

    __slots__ = ("token",)

    def __init__(self, token: str) -> None:
        self.token = token

    def __eq__(self, other: object) -> bool:
        return self.token == other.token if isinstance(other, Encrypted) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.token)


class Secret(Generic[T]):
    """A value that is handed on and never shown.

    `reveal()` returns it. Its repr, its text and its format are stars. As an argument of a
    task or as its result it comes back as a `Secret`. With the setting `encryption_keys` it is
    stored encrypted; without, the message's body holds the value itself, for whoever can read
    the store.
    """

    __slots__ = ("held",)

    def __init_subclass__(cls) -> None:
        raise TypeError(
            f"{cls.__name__}: a Secret is stored and read as one, not as a subclass"
        )

    def __init__(self, value: T | Encrypted) -> None:
        self.held: T | Encrypted = value.held if isinstance(value, Secret) else value

    def reveal(self) -> T:
        """Return the value itself. Raises `DecryptionError` if it is still encrypted, as it
        is where values are only shown."""
        if isinstance(self.held, Encrypted):
            raise DecryptionError("this Secret is encrypted: it was read to be shown only")
        return self.held

    def __repr__(self) -> str:
        return f"Secret({HIDDEN!r})"

    def __str__(self) -> str:
        return HIDDEN

    def __format__(self, spec: str) -> str:
        return format(HIDDEN, spec)

    def __bool__(self) -> bool:
        return bool(self.reveal())

    def __eq__(self, other: object) -> bool:
        return self.held == other.held if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self.held))

    def __reduce__(self) -> tuple[Any, ...]:
        return Secret, (self.held,)


class Redactor:
    """Hides what is secret; `names` are more than those of `NAMES`.

    `tasks` says of the calls that are carried as values, signatures or what JSON made of
    them, which of their arguments are secret.

    Positional arguments go by `parameters`, the names of a task's positional ones; one with a
    star is that of all others. If the last begins with two stars, it is that of all keywords
    but those behind the lone star before it. `front` is how many arguments, those that
    other calls give, come before them. None: nobody knows, and what may be secret is hidden.
    `sensitive` are names of this task's parameters that are secret whatever they are called
    (a text is one name).
    """

    def __init__(self, names: Iterable[str] = (), tasks: Tasks | None = None) -> None:
        self._tasks = tasks
        words = {"_".join(_words(name)) for name in (*NAMES, *names)} - {""}
        self._pattern = re.compile(f"_(?:{'|'.join(map(re.escape, sorted(words)))})_")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tasks": None}  # they are the app's, and stay in its process

    def is_secret(self, name: object) -> bool:
        """Tell whether what goes by this name is not to be shown."""
        return isinstance(name, str) and self._pattern.search(_spaced(name)) is not None

    def value(self, value: Any, name: object = None) -> Any:
        """Return a value with what is secret in it replaced, for a structured display.

        Lists, tuples, sets and dicts are copied; dataclasses and models become dicts.
        """
        return self._value(value, name, _DEPTH)

    def text(self, value: Any, name: object = None, limit: int = _TEXT_LIMIT) -> str:
        """Return the repr of a value with what is secret in it replaced, in at most
        `limit` characters. What a class's own `__repr__` says is not asked for."""
        writer = _Writer(self, limit)
        if self._hides(value, name):
            return repr(HIDDEN)
        writer.write(value, _DEPTH)
        return writer.text()

    def source(self, value: Any, name: object = None) -> str:
        """Return an argument as source text, as `repr` does, what is secret in it hidden.
        Of other objects than plain data the class itself says what it shows."""
        if _safely(self._hides, value, name):
            return repr(HIDDEN)
        if isinstance(value, str):
            return repr(mask_url(value))
        kind = type(value)
        if kind is dict:
            pairs = (f"{key!r}: {self.source(one, key)}" for key, one in value.items())
            return f"{{{', '.join(pairs)}}}"
        if kind is list or (kind is tuple and value):
            members = ", ".join(map(self.source, value))
            end = "," if kind is tuple and len(value) == 1 else ""
            return f"[{members}]" if kind is list else f"({members}{end})"
        return repr(value) if _fields(value) is None else self.text(value)

    def arguments(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parameters: Sequence[str] = (),
        sensitive: str | Iterable[str] = (),
        front: int | None = 0,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with what is secret in them replaced."""
        known = parameters, sensitive
        shown = self._covered_call(args, self._covered(kwargs), known, front)
        return (
            tuple(self.value(one) for one in shown[0]),
            {name: self.value(one, name) for name, one in shown[1].items()},
        )

    def call(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parameters: Sequence[str] = (),
        sensitive: str | Iterable[str] = (),
        limit: int = _TEXT_LIMIT,
    ) -> tuple[str, str]:
        """Return `argsrepr` and `kwargsrepr` of a call, as events and logs show them."""
        shown = self.arguments(args, kwargs, parameters, sensitive)
        return self.text(shown[0], limit=limit), self.text(shown[1], limit=limit)

    def sources(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parameters: Sequence[str] = (),
        sensitive: str | Iterable[str] = (),
        front: int | None = 0,
    ) -> list[str]:
        """Return the arguments of a call as source text, each as `source()` has it."""
        shown = self._covered_call(args, kwargs, (parameters, sensitive), front)
        return [
            *(self.source(one) for one in shown[0]),
            *(f"{name}={self.source(one, name)}" for name, one in shown[1].items()),
        ]

    def secrets(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parameters: Sequence[str] = (),
        sensitive: str | Iterable[str] = (),
        front: int | None = 0,
        least: int = _LEAST_SECRET,
    ) -> set[str]:
        """Return the texts that are secret in the arguments of a call, to be hidden from
        what is said about it, as an exception's message. Those of fewer than `least`
        characters are left out."""
        hidden = _named(sensitive)
        found: set[str] = set()
        names = _places(len(args), parameters, front)
        for places, one in zip(names, args, strict=True):
            is_secret = any(name in hidden or self.is_secret(name) for name in places)
            self._gather(one, None, found, _DEPTH, is_secret=is_secret)
        more = _more_keywords(parameters)
        for name, one in kwargs.items():
            is_secret = name in hidden or any(
                rest in hidden or self.is_secret(rest) for rest in more(name)
            )
            self._gather(one, name, found, _DEPTH, is_secret=is_secret)
        self._gather_covered(kwargs, self._covered(kwargs), found, _DEPTH)
        return {text for text in found if len(text) >= least}

    def _covered_call(
        self,
        args: Iterable[Any],
        kwargs: Mapping[str, Any],
        known: tuple[Sequence[str], str | Iterable[str]],
        front: int | None,
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a call, those hidden that are secret by their place."""
        args, hidden = list(args), _named(known[1])

        def covered(name: str, value: Any) -> bool:
            return name in hidden or _safely(self._hides, value, name)

        places, more = _places(len(args), known[0], front), _more_keywords(known[0])
        return (
            [
                HIDDEN if any(covered(name, one) for name in names) else one
                for names, one in zip(places, args, strict=True)
            ],
            {
                name: HIDDEN
                if name in hidden or any(covered(rest, one) for rest in more(name))
                else one
                for name, one in kwargs.items()
            },
        )

    def _covered(self, value: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """Return a dictionary; of one that is a call, or holds many for one task, as `map()`
        does, with the arguments hidden that are secret."""
        task = value.get("task")
        if self._tasks is None or task is None:
            return value
        if isinstance(task, Mapping):
            known = self._tasks(str(task.get("task")))
            items = value.get("it")
            if known is None or not isinstance(items, (list, tuple)):
                return value
            return {**value, "it": [self._covered_item(item, known) for item in items]}
        known = self._tasks(task) if isinstance(task, str) else None
        args, kwargs = value.get("args"), value.get("kwargs")
        if known is None or not isinstance(args, (list, tuple)):
            return value
        if not isinstance(kwargs, Mapping):
            return value
        front = 0 if value.get("immutable") else None
        shown = self._covered_call(args, kwargs, known, front)
        return {**value, "args": shown[0], "kwargs": shown[1]}

    def _covered_item(self, item: Any, known: tuple[Sequence[str], str | Iterable[str]]) -> Any:
        """Return the arguments of one of many calls: of a list, which may be all of them or
        the first alone, without any if that is secret."""
        (alone,), _ = self._covered_call((item,), {}, known, 0)
        if alone is HIDDEN or not isinstance(item, (list, tuple)):
            return alone
        return self._covered_call(item, {}, known, 0)[0]

    def _hides(self, value: Any, name: object) -> bool:
        if isinstance(value, Secret):
            return True
        return self.is_secret(name) and value not in (None, "", (), False, True)

    def _value(self, value: Any, name: object, depth: int) -> Any:
        if isinstance(value, _PLAIN) and not self.is_secret(name):
            return value
        if _safely(self._hides, value, name):
            return HIDDEN
        if isinstance(value, str):
            return mask_url(value)
        if depth == 0:
            return "…"
        if isinstance(value, Mapping):
            value = self._covered(value)
            return {
                _key(key): self._value(member, key, depth - 1) for key, member in value.items()
            }
        for kind in (list, tuple, set, frozenset):
            if isinstance(value, kind):
                members = [self._value(member, None, depth - 1) for member in value]
                return members if kind is list else _again(kind, members)
        if (fields := _fields(value)) is not None:
            return {key: self._value(member, key, depth - 1) for key, member in fields.items()}
        return value

    def _gather(
        self, value: Any, name: object, found: set[str], depth: int, *, is_secret: bool
    ) -> None:
        if isinstance(value, Secret):
            value, is_secret = value.held, True
        is_secret = is_secret or self.is_secret(name)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            if is_secret:
                found.add(value)
            elif "://" in value:
                found.update(_url_secrets(value))
            return
        if is_secret and _is_scalar(value):
            found.add(str(value))
        if depth == 0:
            return
        if isinstance(value, (list, tuple, set, frozenset)):
            for member in value:
                self._gather(member, None, found, depth - 1, is_secret=is_secret)
            return
        members = value if isinstance(value, Mapping) else _fields(value)
        if isinstance(value, Mapping):
            self._gather_covered(value, self._covered(value), found, depth)
        if members is not None and members is not value:
            members = {**getattr(value, "__dict__", {}), **members}  # a task is given both
        for key, member in (members or {}).items():
            self._gather(member, key, found, depth - 1, is_secret=is_secret)

    def _gather_covered(self, value: Any, shown: Any, found: set[str], depth: int) -> None:
        """Gather what is hidden in the arguments of a call that is a value."""
        if shown is value:
            return
        if shown is HIDDEN:
            self._gather(value, None, found, depth - 1, is_secret=True)
        elif isinstance(value, Mapping):
            for key, member in shown.items():
                self._gather_covered(value[key], member, found, depth)
        else:
            for one, member in zip(value, shown, strict=True):
                self._gather_covered(one, member, found, depth)


@lru_cache(maxsize=1)
def default() -> Redactor:
    """Return the one that knows the names in `NAMES` alone, where no app is at hand."""
    return Redactor()


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return a text in which none of these texts stands any more, longest first."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
        if (inner := repr(secret)[1:-1]) != secret:  # as a repr in the text shows it
            text = text.replace(inner, HIDDEN)
    return text


class _Writer:
    """A repr in the making, that ends when it is long enough."""

    def __init__(self, redactor: Redactor, limit: int) -> None:
        self._redactor = redactor
        self._limit = limit
        self._left = limit
        self._parts: list[str] = []

    def text(self) -> str:
        text = "".join(self._parts)
        return text if len(text) <= self._limit else f"{text[: self._limit - 1]}…"

    def write(self, value: Any, depth: int) -> None:
        if isinstance(value, Secret):
            self._put(repr(HIDDEN))
        elif isinstance(value, str):
            # Cut first: the repr of a megabyte, to show a line of it, takes milliseconds.
            shown = str.__str__(value)
            if "://" in shown:
                shown = mask_url(shown)
            self._put(repr(shown if len(shown) <= self._limit else shown[: self._limit] + "…"))
        elif isinstance(value, (bytes, bytearray)):
            self._put(repr(bytes(value[: self._limit])))
        elif isinstance(value, int) and type(value) is int and value.bit_length() > 4096:
            self._put(f"<int of {value.bit_length()} bits>")  # Python may refuse to print it
        elif type(value) in _PLAIN:
            self._put(repr(value))
        elif depth == 0:
            self._put("…")
        else:
            self._write_members(value, depth - 1)

    def _write_members(self, value: Any, depth: int) -> None:
        if isinstance(value, Mapping):
            value = self._redactor._covered(value)
            self._write_pairs(
                "{", ((repr(_key(k)), k, v) for k, v in value.items()), ": ", "}", depth
            )
        elif isinstance(value, list):
            self._write_all("[", value, "]", depth)
        elif isinstance(value, tuple):
            self._write_all("(", value, ",)" if len(value) == 1 else ")", depth)
        elif isinstance(value, (set, frozenset)):
            self._write_all("{", value, "}", depth)
        elif (fields := _fields(value)) is not None:
            name = type(value).__qualname__
            self._write_pairs(
                f"{name}(", ((k, k, v) for k, v in fields.items()), "=", ")", depth
            )
        elif type(value).__module__.partition(".")[0] in _HARMLESS:
            self._put(repr(value))
        else:
            self._put(f"<{type(value).__qualname__}>")

    def _write_all(
        self, opening: str, members: Iterable[Any], closing: str, depth: int
    ) -> None:
        self._put(opening)
        for number, member in enumerate(members):
            if self._left <= 0:
                return
            if number:
                self._put(", ")
            self.write(member, depth)
        self._put(closing)

    def _write_pairs(
        self,
        opening: str,
        pairs: Iterable[tuple[str, object, Any]],
        between: str,
        closing: str,
        depth: int,
    ) -> None:
        self._put(opening)
        for number, (shown, key, member) in enumerate(pairs):
            if self._left <= 0:
                return
            self._put(f", {shown}{between}" if number else f"{shown}{between}")
            if _safely(self._redactor._hides, member, key):
                self._put(repr(HIDDEN))
            else:
                self.write(member, depth)
        self._put(closing)

    def _put(self, text: str) -> None:
        self._parts.append(text)
        self._left -= len(text)


def _safely(hides: Any, value: Any, name: object) -> bool:
    """Hide what cannot be compared (an array, say) if it goes by a secret's name."""
    try:
        return bool(hides(value, name))
    except Exception:  # noqa: BLE001 (the value's own `__eq__`)
        return True


def _key(key: Any) -> Any:
    return key if isinstance(key, (str, *_PLAIN)) else f"<{type(key).__qualname__}>"


def _again(kind: type[Any], members: list[Any]) -> Any:
    """Return a tuple or set of members, a list if they cannot be in one."""
    try:
        return kind(members)
    except TypeError:
        return members


def _is_scalar(value: Any) -> bool:
    """Tell whether a value is a number, a date, a uuid: a PIN need not be a text."""
    if value is None or isinstance(value, bool):
        return False
    return isinstance(value, _PLAIN) or type(value).__module__ in _HARMLESS


def _fields(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass's or pydantic model's instance."""
    names = getattr(type(value), "__dataclass_fields__", None)
    if names is None:
        names = getattr(type(value), "model_fields", None)
    if not isinstance(names, Mapping):
        return None
    found = getattr(value, "__dict__", {})
    return {
        str(name): found[name] if name in found else getattr(value, name, None)
        for name in names
    }


# Names


def _places(
    count: int, parameters: Sequence[str], front: int | None
) -> Iterator[tuple[str, ...]]:
    """Return the names that each of so many positional arguments may go by."""
    names = [*takewhile(lambda name: not name.startswith("*"), parameters)]
    rest = "".join(parameters[len(names) : len(names) + 1])[1:]
    fronts: Iterable[int] = (front or 0,)
    if front is None:  # as many as there is room for
        fronts = range(1 + (len(names) if rest else max(0, len(names) - count)))
    last = (rest,) if rest else ()
    for number in range(count):
        found = (names[at + number :][:1] or last for at in fronts)
        yield tuple(dict.fromkeys(name for some in found for name in some))


def _more_keywords(parameters: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return what tells by which name a keyword goes besides its own: that of the parameter
    which takes all that are not named."""
    rest = parameters[-1] if parameters else ""
    if not rest.startswith("**"):
        return lambda _: ()
    named = frozenset(parameters[parameters.index("*") :])
    return lambda name: () if name in named else (rest[2:],)


def _named(sensitive: str | Iterable[str]) -> frozenset[str]:
    return frozenset((sensitive,) if isinstance(sensitive, str) else sensitive)


_CAMEL: Final = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"


def _words(name: str) -> list[str]:
    """Return the words of a name in any style: dbPassword, DB_PASSWORD, db-password."""
    return re.findall(r"[a-z0-9]+", re.sub(_CAMEL, "_", name).lower())


@lru_cache(maxsize=4096)
def _spaced(name: str) -> str:
    return f"_{'_'.join(_words(name[:200]))}_"


_SECRET_SETTING: Final = (
    r"(?i)(^|_)(pass|password|passwd|passphrase|secret|token|api_?key|credentials?|signature)"
    r"($|_)|(?<!routing)_keys?$|^keys?$|_key_"
)


def is_secret_setting(name: object) -> bool:
    """Tell whether a setting's value is not to be shown. (A "key" is secret in settings,
    where it opens something; a task's argument of that name is mostly the key of a row.)"""
    return isinstance(name, str) and re.search(_SECRET_SETTING, name) is not None


# URLs

# The password ends at the last "@" of the host's part: one in it may be written as it is. "://"
# may not: a text of many, without an "@", would be read to its end from each of them.
_URL_PASSWORD: Final = (
    r"(?<=://)([^/@:\s]*):((?:[^@:\s]|:(?!//))*(?:@[^@/?#\s\"']*)*?)@(?![^@/?#\s\"']*@)"
)
_QUERY_SECRET: Final = (
    r"(?i)([?&](?:key|[^=&?\s\"']*(?:password|passwd|passphrase|pwd|secret|token|credentials?"
    r"|signature|sig|(?:api|access|private|secret|signing|encryption)[_-]?key))=)"
    r"([^&\s\"']*)"
)


def mask_url(text: str) -> str:
    """Return a text with the passwords of its URLs hidden, to be shown or logged."""
    text = re.sub(_URL_PASSWORD, rf"\g<1>:{HIDDEN}@", text)
    return re.sub(_QUERY_SECRET, rf"\g<1>{HIDDEN}", text)


def _url_secrets(text: str) -> Iterator[str]:
    for pattern in (_URL_PASSWORD, _QUERY_SECRET):
        yield from (match[2] for match in re.finditer(pattern, text))
