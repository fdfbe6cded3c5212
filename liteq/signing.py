"""Signatures: nobody without one of the keys can make a message or change one.

A `Signer` signs what a producer puts into the store, and checks it before anything is
made of the bytes: messages, results (which are the arguments of what follows), periodic
entries. HMAC with SHA-256; the first key signs, each of them is accepted, so that keys
can be exchanged while everything runs.

What a message's signature covers: id, task, body, queue, expiry, time limits, how it is
acknowledged, how long its result is kept, and all of the envelope (headers, stamps,
format, place in a workflow, what it waits for: see `binding`). What the store itself may
change is left out: priority, time of the start, limits, how often it was retried and put
back. What a result's covers: the id of its task, the gathers that it is a part of, the bytes.
So neither can be handed to another id.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from typing import Final

from liteq.binding import bind, check
from liteq.clock import FromNow
from liteq.exceptions import InvalidSignature, MessageTooLarge
from liteq.message import GATHER, MAX_ENVELOPE, UNIQUE_KEY, VERSION, Edge, Message, Packed

__all__ = ["Signer", "unsealed"]

_SEAL: Final = b"\x01liteq1"  # no format that values are written in begins like this
_END: Final = f'"v":{VERSION}}}'  # of every envelope
_SIGNED_END: Final = re.compile(rf'"signature":"([0-9a-f]{{16}}):([0-9a-f]{{64}})",{_END}$')
_REQUEUED: Final = re.compile(r'"requeued":-?\d+,')  # a space is behind any other colon
_ROOM: Final = 256  # characters of an envelope, for its signature and end
_MESSAGE: Final = b"message"
_VALUE: Final = b"value"


class Signer:
    """Signs with the first of these keys, and checks with all of them.

    `accepts_unsigned`: what bears no signature at all is accepted, while a store is being
    moved to signed messages; a wrong signature never is.
    """

    def __init__(self, keys: Sequence[str], *, accepts_unsigned: bool = False) -> None:
        self._keys = tuple(keys)
        self._accepts_unsigned = accepts_unsigned
        # A key of its own for each purpose, so that no signature passes for another kind.
        self._derived: dict[tuple[bytes, str], bytes] = {}
        names = []
        for key in keys:
            name = hashlib.sha256(b"liteq key name " + key.encode()).hexdigest()[:16]
            names.append(name)
            for purpose in (_MESSAGE, _VALUE):
                self._derived[purpose, name] = hmac.digest(
                    key.encode(), b"liteq " + purpose, "sha256"
                )
        self._first = names[0]

    def __repr__(self) -> str:
        return f"<Signer: {len(self._keys)} keys>"

    def __reduce__(self) -> tuple[object, ...]:
        return _signer, (self._keys, self._accepts_unsigned)

    # Messages

    def bind(
        self, messages: Sequence[Message], edges: Sequence[Edge], around: Message | None = None
    ) -> Sequence[Message]:
        """Return messages that say what they wait for; see `binding.bind`."""
        return bind(messages, edges, around)

    def sign(self, message: Message) -> Message:
        """Return the message with a signature. (A gather is no message that runs.)

        Raises `MessageTooLarge` if it waits for more than an envelope can name.
        """
        if message.task == GATHER:
            return message
        message = message._replace(signature=None)
        if type(message.expires_at) is FromNow:  # no store may move what is signed
            message = message._replace(expires_at=float(message.expires_at))
        packed = message.pack()
        envelope = packed[-1]
        head = "{" if envelope is None else envelope.removesuffix(_END)
        if len(head) > MAX_ENVELOPE - _ROOM:
            raise MessageTooLarge(
                f"{message.task} waits for {len(message.takes or ())} calls, more than a "
                "signed message can name: have it wait for a group of them"
            )
        signature = self._mac(_MESSAGE, self._first, _covered(packed, head))
        return message._replace(signature=f"{self._first}:{signature}")

    def check(self, packed: Packed) -> None:
        """Raise `InvalidSignature` unless a packed message is as it was signed."""
        envelope: str | None = packed[-1]
        found = None if envelope is None else _SIGNED_END.search(envelope)
        if envelope is None or found is None:
            self._unsigned("message")
            return
        self._compare(
            _MESSAGE, found[1], found[2], _covered(packed, envelope[: found.start()]), "message"
        )

    def check_inputs(
        self,
        packed: Packed,
        inputs: Sequence[tuple[str, str, int, bytes]],
        *,
        is_whole: bool = True,
    ) -> None:
        """Raise `InvalidSignature` unless a message, which was found to be as it was signed,
        has the inputs that it waits for; see `binding.check`. What names none may have some
        where what is not signed is accepted."""
        envelope: str | None = packed[-1]
        if envelope is None or '"takes":' not in envelope:
            if inputs and not self._accepts_unsigned:
                check(None, inputs)
            return
        check(Message.unpack(packed).takes, inputs, is_whole=is_whole)

    # Values

    def seal(self, data: bytes, id: str, gathers: Sequence[str] = ()) -> bytes:
        """Return bytes with a signature in front that says whose result they are.

        `gathers`: what they are a part of, and what that is inside of.
        """
        path = gathers or (None,)
        mac = self._mac(_VALUE, self._first, _of_value(data, id, path))
        head = json.dumps([self._first, mac, id, *path])
        return b"%b%b\n%b" % (_SEAL, head.encode(), data)

    def open(
        self, sealed: bytes, id: str | None = None, gather: str | None = None, depth: int = 1
    ) -> bytes:
        """Return the bytes that `seal()` was given.

        `id` and `gather` are whose they must be, if that is known; `depth`: in how many
        lists inside of each other the part is. Raises `InvalidSignature` if they are not,
        or bear no valid signature.
        """
        about = "value" if id is None else f"value of {id}".replace("\n", " ")
        if not sealed.startswith(_SEAL):
            self._unsigned(about)
            return sealed
        line, _, data = sealed.partition(b"\n")
        try:
            name, mac, owner, *path = json.loads(line[len(_SEAL) :])
            covered = _of_value(data, owner, path)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            raise InvalidSignature(f"the signature of the {about} is damaged") from exc
        self._compare(_VALUE, name, mac, covered, about)
        if id is not None and owner != id:
            raise InvalidSignature(f"the {about} was signed as that of {owner}")
        if gather is not None and path[depth - 1 : depth] != [gather]:
            raise InvalidSignature(f"the value of {owner} was not signed as a part of {gather}")
        return data

    def renew(self, sealed: bytes, id: str) -> bytes:
        """Return what `seal()` has given, as it gives it with the first of the keys. Raises
        as `open()` does."""
        if sealed.startswith(_SEAL + json.dumps([self._first])[:-1].encode()):
            return sealed
        return self.seal(self.open(sealed, id), id)

    # Both

    def _mac(self, purpose: bytes, name: str, covered: bytes) -> str:
        return hmac.digest(self._derived[purpose, name], covered, "sha256").hex()

    def _compare(
        self, purpose: bytes, name: object, mac: object, covered: bytes, what: str
    ) -> None:
        if not isinstance(name, str) or (purpose, name) not in self._derived:
            raise InvalidSignature(f"the {what} was signed with a key that is not known here")
        if not isinstance(mac, str) or not hmac.compare_digest(
            mac.encode(), self._mac(purpose, name, covered).encode()
        ):
            raise InvalidSignature(f"the signature of the {what} is wrong: it was changed")

    def _unsigned(self, what: str) -> None:
        if not self._accepts_unsigned:
            raise InvalidSignature(f"the {what} is not signed, and security_keys are set")


def unsealed(data: bytes) -> bytes:
    """Return bytes without the signature in front of them, if there is one, unchecked:
    for who has no keys."""
    return data.partition(b"\n")[2] if data.startswith(_SEAL) else data


def _covered(packed: Packed, head: str) -> bytes:
    """Return what a message's signature covers, `head` being the envelope without it.

    The stores keep numbers in other types than they were given: each has one form here.
    """
    id, task, body, queue, _, _, expires_at, _, hard, soft, late, ignored, most, kept = packed[
        :14
    ]
    if '"on_conflict":"replace"' in head:
        # It may become another's, with that key.
        id = f"unique {str(packed[UNIQUE_KEY]).lstrip('-')}"
    if '"expires_in":' in head:
        expires_at = None  # it is set when what this one waits for has ended
    if '"requeued":' in head:
        head = _REQUEUED.sub("", head)
    numbers = [None if n is None else float(n) for n in (expires_at, hard, soft, most, kept)]
    texts = (id, task, queue, repr(numbers), f"{bool(late)}{bool(ignored)}", head)
    return _joined([*(text.encode("utf-8", "surrogatepass") for text in texts), body])


def _of_value(data: bytes, id: str, path: Sequence[str | None]) -> bytes:
    parts = (id, *("" if gather is None else f"={gather}" for gather in path))
    return _joined([*(part.encode("utf-8", "surrogatepass") for part in parts), data])


def _joined(parts: Sequence[bytes]) -> bytes:
    """Return bytes from which the parts can be told: none can grow at another's cost."""
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _signer(keys: tuple[str, ...], accepts_unsigned: bool) -> Signer:  # noqa: FBT001 (pickle's way to call)
    return Signer(keys, accepts_unsigned=accepts_unsigned)
