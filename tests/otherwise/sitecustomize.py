"""A system without what Linux alone has: a Python that has this folder first on its path
finds liteq on what macOS offers, as far as that can be had here.

What is taken away is not only what liteq asks for, so that what it comes to ask for is caught.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any

MISSING = {
    os: """copy_file_range eventfd getrandom memfd_create O_PATH O_TMPFILE pidfd_open
        pidfd_send_signal pipe2 posix_fadvise posix_fallocate sched_getaffinity
        sched_setaffinity setns splice unshare""",
    fcntl: """F_ADD_SEALS F_GETSIG F_NOTIFY F_OFD_GETLK F_OFD_SETLK F_SETLEASE
        F_SETPIPE_SZ F_SETSIG""",
    select: "epoll",
    signal: "SIGPWR SIGRTMAX SIGRTMIN sigtimedwait sigwaitinfo",
    socket: """AF_NETLINK MSG_CMSG_CLOEXEC MSG_NOSIGNAL SO_DOMAIN SO_PASSCRED SO_PEERCRED
        SOCK_CLOEXEC SOCK_NONBLOCK SOCK_SEQPACKET""",
    time: "CLOCK_BOOTTIME CLOCK_TAI",
}
LONGEST = 2048  # bytes of a datagram, unless a socket was given room for more

for module, names in MISSING.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)


def asked_by_liteq() -> bool:
    """Tell whether the call that is wrapped below comes from liteq, if through a function of
    the standard library: Python itself may look into /proc."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(3):
        if frame is None:
            return False
        if f"{os.sep}liteq{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def hide_proc(module: Any, name: str) -> None:
    real = getattr(module, name)

    def call(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        try:
            text = os.fsdecode(path)
        except TypeError:  # a descriptor
            text = ""
        if text.startswith(("/proc", "/sys")) and asked_by_liteq():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return real(path, *args, **kwargs)

    setattr(module, name, call)


def limit_datagrams() -> None:
    send_to, set_option = socket.socket.sendto, socket.socket.setsockopt
    room: dict[int, int] = {}

    def setsockopt(self: Any, level: int, option: int, *value: Any) -> None:
        set_option(self, level, option, *value)
        if (level, option) == (socket.SOL_SOCKET, socket.SO_SNDBUF):
            room[self.fileno()] = value[0]

    def getsockopt(self: Any, level: int, option: int, *size: int) -> Any:
        if self.type == socket.SOCK_DGRAM and option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            return room.get(self.fileno(), LONGEST)
        return get_option(self, level, option, *size)

    def sendto(self: Any, data: bytes, *rest: Any) -> int:
        local = self.family == socket.AF_UNIX and self.type == socket.SOCK_DGRAM
        if local and len(data) > room.get(self.fileno(), LONGEST):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return send_to(self, data, *rest)

    get_option = socket.socket.getsockopt
    for wrapper in (sendto, setsockopt, getsockopt):
        setattr(socket.socket, wrapper.__name__, wrapper)


for name in ("access", "listdir", "lstat", "open", "readlink", "scandir", "stat", "statvfs"):
    hide_proc(os, name)
hide_proc(sys.modules["builtins"], "open")
limit_datagrams()
