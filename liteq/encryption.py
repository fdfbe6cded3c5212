"""The cipher of an app that has `encryption_keys`: Fernet, of the package `cryptography`.

Fernet is AES-128 in CBC mode with HMAC-SHA256 over all of it, so that what was changed is
refused. A token is the name of its key, a colon, and what Fernet made: the name says which
key is missing, and nothing of the key.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from liteq.ciphers import Cipher
from liteq.exceptions import DecryptionError, ImproperlyConfigured

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

__all__ = ["Keyring"]


class Keyring(Cipher):
    """Encrypts with the first of these keys, and decrypts with each.

    A key is 32 random bytes in URL-safe base64, with or without the sign at its end, as
    `secrets.token_urlsafe(32)` and `Fernet.generate_key()` make it.
    """

    has_keys = True

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(keys)
        raw = [urlsafe_b64decode(f"{key.rstrip('=')}=") for key in keys]
        self._raw = {
            hashlib.sha256(b"liteq key name " + one).hexdigest()[:16]: one for one in raw
        }
        self._first = next(iter(self._raw))
        # A key of its own, so that no fingerprint tells anything of what Fernet makes.
        self._comparing = hmac.digest(raw[0], b"liteq fingerprint", "sha256")

    def __repr__(self) -> str:
        return f"<Keyring: {len(self._keys)} keys>"

    def __reduce__(self) -> tuple[object, ...]:
        return Keyring, (self._keys,)

    def prepare(self) -> None:
        """Load the package, before a worker takes its first call."""
        _ = self._fernets

    def encrypt(self, data: bytes) -> str:
        """Return a token made with the first key."""
        return f"{self._first}:{self._fernets[self._first].encrypt(data).decode()}"

    def decrypt(self, token: str) -> bytes:
        """Return the bytes of a token that one of the keys has made."""
        fernets = self._fernets
        from cryptography.fernet import InvalidToken  # late: see there

        name, _, made = token.partition(":")
        if name not in fernets:
            raise DecryptionError("a Secret was encrypted with a key that is not known here")
        try:
            return fernets[name].decrypt(made.encode())
        except InvalidToken:
            raise DecryptionError("an encrypted Secret is damaged: it was changed") from None

    def passed(self, token: str) -> str:
        """Return the token, made anew with the first key if another one made it: what is
        handed on, as from a periodic entry, must not need a key for ever."""
        if token.startswith(f"{self._first}:"):
            return token
        try:
            return self.encrypt(self.decrypt(token))
        except DecryptionError:
            return token  # whoever reads it says so

    def fingerprint(self, data: bytes) -> str:
        """Return an HMAC of the bytes under the first key."""
        return hmac.digest(self._comparing, data, "sha256").hex()

    def newest(self) -> Keyring:
        """Return the same without the keys that only decrypt."""
        return Keyring(self._keys[:1])

    @cached_property
    def _fernets(self) -> dict[str, Fernet]:
        try:
            from cryptography.fernet import Fernet  # late: an extra, and 30 ms
        except ImportError as exc:
            raise ImproperlyConfigured(
                "encryption_keys need the package cryptography: "
                "pip install 'liteq-queue[encryption]'"
            ) from exc
        return {name: Fernet(urlsafe_b64encode(raw)) for name, raw in self._raw.items()}
