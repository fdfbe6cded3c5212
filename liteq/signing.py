"""Signatures: who has none of the keys can neither make a message nor change one.

A `Signer` signs what a producer puts into the store, and checks it before anything is
made of the bytes: messages, results (which are the arguments of what follows), periodic
entries. HMAC with SHA-256; the first key signs, each of them is accepted, so that keys
can be exchanged while everything runs.

What a message's signature covers: id, task, body, queue, expiry, time limits, how it is
acknowledged, how long its result is kept, and all of the envelope (headers, stamps,
format, place in a workflow). What the store itself may change is left out: priority, time
of the start, number of retries, limits. What a result's covers: the id of its task, the
gather that it is a part of, the bytes. So neither can be handed to another id.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from typing import Final

from liteq.exceptions import InvalidSignature
from liteq.message import GATHER, VERSION, Message, Packed

__all__ = ["Signer", "unsealed"]

_SEAL: Final = b"\x01liteq1"  # no format that values are written in begins like this
_END: Final = f'"v":{VERSION}}}'  # of every envelope
_SIGNED_END: Final = re.compile(rf'"signature":"([0-9a-f]{{16}}):([0-9a-f]{{64}})",{_END}$')
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

    def sign(self, message: Message) -> Message:
        """Return the message with a signature. (A gather is no message that runs.)"""
        if message.task == GATHER:
            return message
        packed = message._replace(signature=None).pack()
        envelope = packed[-1]
        head = "{" if envelope is None else envelope.removesuffix(_END)
        signature = self._mac(_MESSAGE, self._first, _covered(packed, head))
        return message._replace(signature=f"{self._first}:{signature}")

    def check(self, packed: Packed) -> None:
        """Raise `InvalidSignature` unless a packed message is as it was signed."""
        envelope: str | None = packed[-1]
        found = None if envelope is None else _SIGNED_END.search(envelope)
        if envelope is None or found is None:
            self._unsigned("the message")
            return
        self._compare(
            _MESSAGE, found[1], found[2], _covered(packed, envelope[: found.start()]), "message"
        )

    # Values

    def seal(self, data: bytes, id: str, gather: str | None = None) -> bytes:
        """Return bytes with a signature in front that says whose result they are."""
        mac = self._mac(_VALUE, self._first, _of_value(data, id, gather))
        return b"%b%b\n%b" % (_SEAL, json.dumps([self._first, mac, id, gather]).encode(), data)

    def open(self, sealed: bytes, id: str | None = None, gather: str | None = None) -> bytes:
        """Return the bytes that `seal()` was given.

        `id` and `gather` are whose they must be, if that is known. Raises
        `InvalidSignature` if they are not, or bear no valid signature.
        """
        about = "the value" if id is None else f"the value of {id}"
        if not sealed.startswith(_SEAL):
            self._unsigned(about)
            return sealed
        line, _, data = sealed.partition(b"\n")
        try:
            name, mac, owner, part_of = json.loads(line[len(_SEAL) :])
            covered = _of_value(data, owner, part_of)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            raise InvalidSignature(f"the signature of {about} is damaged") from exc
        self._compare(_VALUE, name, mac, covered, about)
        if id is not None and owner != id:
            raise InvalidSignature(f"{about} was signed as that of {owner}")
        if gather is not None and part_of != gather:
            raise InvalidSignature(f"the value of {owner} was signed as no part of {gather}")
        return data

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
            raise InvalidSignature(f"{what} is not signed, and security_keys are set")


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
        id = f"unique {str(packed[15]).lstrip('-')}"  # it may become another's, with that key
    if '"expires_in":' in head:
        expires_at = None  # it is set when what this one waits for has ended
    numbers = [None if n is None else float(n) for n in (expires_at, hard, soft, most, kept)]
    texts = (id, task, queue, repr(numbers), f"{bool(late)}{bool(ignored)}", head)
    return _joined([*(text.encode("utf-8", "surrogatepass") for text in texts), body])


def _of_value(data: bytes, id: str, gather: str | None) -> bytes:
    parts = (id, "" if gather is None else f"={gather}")
    return _joined([*(part.encode("utf-8", "surrogatepass") for part in parts), data])


def _joined(parts: Sequence[bytes]) -> bytes:
    """Return bytes from which the parts can be told: none can grow at another's cost."""
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _signer(keys: tuple[str, ...], accepts_unsigned: bool) -> Signer:  # noqa: FBT001 (pickle's way to call)
    return Signer(keys, accepts_unsigned=accepts_unsigned)
