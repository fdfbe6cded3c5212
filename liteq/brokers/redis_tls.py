"""What is said about TLS to a Redis server: the words of a URL as the library takes them, and
what to do about an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["advice", "read"]

_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_CHECKS: Final = ("none", "optional", "required")
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}
_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")

_ENDED: Final = (
    "the server ended it: does it require a client certificate (ssl_certfile and ssl_keyfile)?"
)
_ADVICE: Final = (
    (
        "Hostname mismatch",
        "the URL must have a name that the server's certificate is issued for, or the server "
        "needs a certificate for the name in the URL",
    ),
    ("IP address mismatch", "use a name that the server's certificate is issued for"),
    ("has expired", "the server needs a new certificate, or this machine's clock is wrong"),
    ("not yet valid", "this machine's clock is wrong, or the certificate is not valid yet"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server's certificate is signed by no authority that is trusted here: name the "
        "file of the one that signed it with ssl_ca_certs",
    ),
    (
        "CERTIFICATE_REQUIRED",
        "the server requires a client certificate: name it with ssl_certfile and ssl_keyfile",
    ),
    ("EOF occurred in violation of protocol", _ENDED),
    ("Connection reset by peer", _ENDED),
)


def read(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `ssl_…` options, words of a URL among them, as the library takes them. Raises
    `ValueError` for an invalid word."""
    return {name: _value(name, value) for name, value in options.items()}


def _value(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match name:
        case "ssl_cert_reqs":
            word = value.lower().removeprefix("cert_")
            if word not in _CHECKS:
                raise ValueError(f"{name} must be one of {', '.join(_CHECKS)}, not {value!r}")
            return word
        case "ssl_check_hostname":
            if value.lower() not in _BOOLEANS:
                raise ValueError(f"{name} must be true or false, not {value!r}")
            return _BOOLEANS[value.lower()]
        case "ssl_min_version":
            if value not in _VERSIONS:
                raise ValueError(f"{name} must be one of {', '.join(_VERSIONS)}, not {value!r}")
            import ssl  # late: 10 ms that a program without TLS saves

            return ssl.TLSVersion[value.replace(".", "_")]
        case _:
            return value


def advice(tls: Mapping[str, Any] | None, text: str) -> str:
    """Return what to do about an error with this text, "; …"; "" where nothing is known."""
    if tls is None:
        reset = "Connection reset by peer" in text or "closed the connection" in text
        return "; if the server speaks TLS, its URL must begin with rediss://" if reset else ""
    missing = [
        f"{name}={tls[name]}"
        for name in _FILES
        if tls.get(name) and not os.path.exists(tls[name])
    ]
    if missing:
        return f"; there is no file {' and no '.join(missing)}"
    if "Timeout" in text or "WRONG_VERSION_NUMBER" in text:
        return (
            "; rediss:// needs a port that speaks TLS: does this one? (Without TLS: redis://)"
        )
    return next((f"; {what}" for word, what in _ADVICE if word in text), "")
