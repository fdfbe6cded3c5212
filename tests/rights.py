"""A store that its user may not look into, whoever runs the tests: nothing keeps root out, so
its rights to the files of others are laid down for the while."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["acting_as", "closed", "unprivileged"]

_VERSION_3 = 0x20080522  # <linux/capability.h>
_OVER_ALL_FILES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28  # <linux/prctl.h>
_NOROOT = 1  # SECBIT_NOROOT: a program that root starts gets no more than root has now


@contextmanager
def closed(path: Path) -> Iterator[None]:
    """Let nobody look at a file or into a folder, us included."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with unprivileged():
            yield
    finally:
        path.chmod(mode)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Have this thread, and what it starts, no more rights to files than their modes give."""
    if os.getuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("only Linux lets root do without its rights for a while")
    bits = _call("prctl", _PR_GET_SECUREBITS, 0, 0, 0, 0)
    rights = _capabilities()
    _call("prctl", _PR_SET_SECUREBITS, bits | _NOROOT, 0, 0, 0)
    try:
        _set_capabilities([rights[0] & ~_OVER_ALL_FILES, *rights[1:]])
        yield
    finally:
        _set_capabilities(rights)
        _call("prctl", _PR_SET_SECUREBITS, bits, 0, 0, 0)


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Be another user, for whom no file is closed. Only root can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can be another user for a while")
    rights = _capabilities()
    os.seteuid(user)
    try:
        _set_capabilities(rights)  # to the others' files, such as the folder of this test
        yield
    finally:
        os.seteuid(0)
        _set_capabilities(rights)


def _capabilities() -> list[int]:
    """Return effective, permitted and inheritable ones, of the first 32 and of the others."""
    data = (ctypes.c_uint32 * 6)()
    _call("capget", (ctypes.c_uint32 * 2)(_VERSION_3, 0), data)
    return list(data)


def _set_capabilities(rights: list[int]) -> None:
    _call("capset", (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)(*rights))


def _call(name: str, *arguments: object) -> int:
    answer: int = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return answer
