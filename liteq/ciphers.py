"""Who encrypts the secrets that are written just now, and decrypts those that are read.

Each app has a cipher, made of its `encryption_keys`, and hands it to `liteq.serializers` with
each value. There a `Secret` may stand anywhere in the value, and is met by code that can be
handed nothing: a writer that `register_type()` was given, what pickle calls for an object.
So the cipher is `current()` for as long as one value is written or read, in that thread or
coroutine alone: two apps with other keys in one process never meet.
"""

from __future__ import annotations

import json
from contextvars import ContextVar, Token
from typing import Final

from liteq.exceptions import DecryptionError

__all__ = ["KEYLESS", "Cipher", "Fingerprints", "current", "using"]


class Cipher:
    """That of an app without keys: secrets are written as they are, and none that is
    encrypted can be read. What only shows values has no cipher at all, and leaves what is
    encrypted as it is."""

    has_keys: bool = False

    def prepare(self) -> None:
        """Load what it works with. Raises `ImproperlyConfigured` if that is not there."""

    def encrypt(self, data: bytes) -> str:
        """Return bytes as a token, of which each is another."""
        raise NotImplementedError  # nobody asks who has no keys

    def decrypt(self, token: str) -> bytes:
        """Return the bytes of a token. Raises `DecryptionError` if no key here is the one
        that it was made with, or if it was changed."""
        raise DecryptionError("a Secret is encrypted, and encryption_keys are not set here")

    def passed(self, token: str) -> str:
        """Return what to write for a secret that was read, and is still encrypted."""
        return token

    def fingerprint(self, data: bytes) -> str:
        """Return what the same bytes have in common under the first key, and nobody can
        guess who does not have it."""
        raise NotImplementedError

    def newest(self) -> Cipher:
        """Return the cipher with the first of its keys alone."""
        return self


class Fingerprints(Cipher):
    """Writes the fingerprint of each secret in place of it, so that values can be compared
    by their bytes. Nothing can be read of it."""

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher
        self.has_keys = cipher.has_keys

    def encrypt(self, data: bytes) -> str:
        """Return the fingerprint of JSON, whatever the order of its keys."""
        return self._cipher.fingerprint(json.dumps(json.loads(data), sort_keys=True).encode())

    def passed(self, token: str) -> str:
        """Return the fingerprint of what was encrypted. Raises `DecryptionError`."""
        return self.encrypt(self._cipher.decrypt(token))


KEYLESS: Final = Cipher()

_current: ContextVar[Cipher | None] = ContextVar("liteq cipher", default=None)
current: Final = _current.get


class using:  # noqa: N801 (it is called as a function, and as one would take twice as long)
    """Have a cipher be `current()` in a `with` statement."""

    __slots__ = ("_cipher", "_token")

    def __init__(self, cipher: Cipher | None) -> None:
        self._cipher = cipher

    def __enter__(self) -> None:
        self._token: Token[Cipher | None] = _current.set(self._cipher)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
