"""The store's folder and file: made private, on a disk that can hold a WAL, and kept from
a second SQLite library.

- Who owns the folder, or a file in it, decides what is in the store: which tasks run, with
  which arguments. So it must be this user, or root, who could do that anyway.
- Only one SQLite library may touch the database: apsw's. The standard library's
  `sqlite3`, or a plain copy of the folder, opens and closes the `-shm` file, and that
  drops all of this process's POSIX locks (sqlite.org/howtocorrupt.html, section 2.2). An
  audit hook refuses both.
- WAL needs memory that all users of the file share, so a network file system is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import Any, Final

from liteq.exceptions import (
    BrokerError,
    BrokerUnavailable,
    ImproperlyConfigured,
    StoreForbidden,
)
from liteq.pulse import stranger
from liteq.shortage import advice

__all__ = [
    "DATABASE",
    "RESERVE",
    "filesystem_of",
    "forbidden",
    "found",
    "guard",
    "is_network_filesystem",
    "is_there",
    "make_file",
    "make_folder",
    "own_file",
    "own_folder",
    "refuse_network_filesystem",
    "refuse_other_owners",
    "refuse_shared",
    "unusable",
]

DATABASE: Final = "store.db"
RESERVE: Final = 32 * 1024 * 1024  # bytes of disk kept for settling when producers fill it
_SHARED_MEMORY: Final = f"{DATABASE}-shm"
_REMOTE: Final = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "virtiofs", "vboxsf"),
        *("afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "beegfs", "davfs"),
        *("prl_fs", "vmhgfs"),
    )
)


def is_there(folder: str | os.PathLike[str]) -> bool:
    """Tell whether there is a store in a folder. Raises `StoreForbidden` where that cannot be
    known: who may not look must not be told that there is none."""
    return found(os.path.join(folder, DATABASE)) is not None


def found(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Return what is at a path, None if nothing is. Raises `StoreForbidden` if this user may
    not look."""
    try:
        return os.stat(path)
    except PermissionError as exc:
        raise forbidden(exc) from exc
    except (OSError, ValueError):  # a name that no file can have is one that none has
        return None


def forbidden(exc: PermissionError) -> StoreForbidden:
    """Return what it means for the store that one of its files was refused."""
    return StoreForbidden(
        f"uid {os.geteuid()} may not use {exc.filename} ({exc.strerror}): all programs that "
        "use a store must run as the same user, the owner of its folder"
    )


def unusable(exc: OSError) -> BrokerUnavailable:
    """Return what it means for the store that one of its files cannot be opened or made."""
    if isinstance(exc, PermissionError):
        return forbidden(exc)
    why = exc.strerror
    if exc.errno == errno.EROFS:  # none of `advice()`: what is no store's may go elsewhere
        why = "its file system is read-only: mount it for writing"
    return BrokerUnavailable(
        f"the store cannot be used now: {advice(exc) or f'{why} ({exc.filename})'}; nothing "
        "was written, and repeating it is safe"
    )


def make_folder(folder: str, *, allow_other_owner: bool = False) -> None:
    """Make the store's folder, unless there is one, and refuse it if other users could have
    made what is in it.

    Root is let into every store, to look and to steer; what it may not do is run what it
    finds there (see `refuse_other_owners`).
    """
    try:
        own_folder(folder)
    except FileExistsError:
        raise ImproperlyConfigured(
            f"the store's URL must name a folder, and {folder} is a file. liteq keeps its "
            "database, its locks and its sockets in a folder of their own"
        ) from None
    except OSError as exc:
        found(folder)  # which it may be, where this user may not look
        if advice(exc) is not None:  # any other place on that disk would lack it, too
            raise unusable(exc) from exc
        raise ImproperlyConfigured(
            f"cannot create the store's folder {folder} ({exc.strerror}): give a broker URL "
            "such as sqlite:////var/lib/shop/queue that names a writable place"
        ) from exc
    refuse_shared(folder, allow_other_owner=allow_other_owner)


def refuse_shared(folder: str, *, allow_other_owner: bool = False) -> None:
    """Raise `ImproperlyConfigured` if other users could have made what is in a store's folder;
    of one that is not there nothing is said."""
    there = found(folder)
    if there is None:
        return
    mode = stat.S_IMODE(there.st_mode)
    if mode & 0o022:
        raise ImproperlyConfigured(
            f"the store's folder {folder} can be written by other users (mode {mode:04o}), "
            f"who could run tasks with your rights: chmod 700 {folder}"
        )
    if os.geteuid() != 0 and not allow_other_owner:
        refuse_other_owners(folder)


def refuse_other_owners(folder: str) -> None:
    """Raise `ImproperlyConfigured` if neither this user nor root owns a store's folder, or
    something in it."""
    try:
        found = stranger(folder)
    except FileNotFoundError:
        return
    except PermissionError as exc:
        raise forbidden(exc) from exc
    if found is not None:
        path, owner = found
        raise ImproperlyConfigured(
            f"{path} belongs to {_user(owner)}, who could run tasks with the rights of "
            f"{_user(os.geteuid())}: run this as that user, or name a store of your own "
            "(allow_other_owner=True in broker_transport_options overrides this)"
        )


def _user(uid: int) -> str:
    import pwd  # late: for refusals alone

    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:  # another container's
        return f"uid {uid}"


def own_folder(path: str) -> None:
    """Make a folder that only its owner can use, unless there is one: the owner can, whatever
    the umask of this process."""
    if not os.path.isdir(path):
        os.makedirs(path, mode=0o700, exist_ok=True)
        with contextlib.suppress(PermissionError):  # another was quicker, and is another user
            os.chmod(path, 0o700)


def own_file(path: str, flags: int) -> int:
    """Open a file, and make it if there is none, as `own_folder` makes a folder. Raises
    `StoreForbidden` if this user may not, `ImproperlyConfigured` for a symbolic link, and
    `BrokerUnavailable` for what the disk has against it."""
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            fd = os.open(path, flags | os.O_EXCL, 0o600)
        except FileExistsError:
            return os.open(path, flags, 0o600)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise _linked(path) from None
        raise unusable(exc) from exc
    os.fchmod(fd, 0o600)
    return fd


def make_file(path: str) -> None:
    """Create the database file readable by its owner only; SQLite would make it 0644,
    and its `-wal` and `-shm` get the same mode."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        if os.path.islink(path):
            raise _linked(path) from None
    except PermissionError as exc:
        raise forbidden(exc) from exc
    except OSError as exc:
        if advice(exc) is not None:
            raise unusable(exc) from exc
        raise ImproperlyConfigured(f"cannot create {path}: {exc.strerror}") from exc
    else:
        os.fchmod(fd, 0o600)
        os.close(fd)
        _keep_out_of_git(os.path.dirname(path))


def _linked(path: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{path} is a symbolic link, which is refused")


def _keep_out_of_git(folder: str) -> None:
    """Have git pass over a new store: one that was committed would be put back by a
    checkout, and `git stash -u` or `git clean` would take it from under its workers."""
    with contextlib.suppress(OSError):  # there is one, or no room for it
        fd = os.open(
            os.path.join(folder, ".gitignore"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
        )
        with os.fdopen(fd, "w") as file:
            file.write("*\n")


def filesystem_of(folder: str | os.PathLike[str], mounts: str = "/proc/self/mountinfo") -> str:
    """Return the kind of file system that a folder is on ("ext4"), "" if it is not known.

    `mounts` is Linux's table of mounts; without one nothing can be said.
    """
    try:
        with open(mounts, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    real = os.path.realpath(folder)
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def is_network_filesystem(kind: str) -> bool:
    return kind in _REMOTE or (kind.startswith("fuse.") and kind != "fuse.ext4")


def refuse_network_filesystem(
    folder: str | os.PathLike[str], mounts: str = "/proc/self/mountinfo"
) -> None:
    """Raise `ImproperlyConfigured` where WAL's shared memory cannot work."""
    kind = filesystem_of(folder, mounts)
    if is_network_filesystem(kind):
        raise ImproperlyConfigured(
            f"{os.path.realpath(folder)} is on a {kind} file system, where SQLite's WAL loses "
            "commits: put the store on a local disk, or use a redis:// broker for several "
            "machines (allow_network_filesystem=True in broker_transport_options overrides "
            "this)"
        )


# One SQLite library per process and file

_guarded: set[str] = set()


def guard(path: str) -> None:
    if not _guarded:
        sys.addaudithook(_audit)
    _guarded.add(os.path.realpath(path))


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        name = args[0]
        if type(name) is bytes:
            name = os.fsdecode(name)
        if type(name) is str and name.endswith(_SHARED_MEMORY):
            _refuse(name[:-4], "opened")
    elif event == "sqlite3.connect":
        name = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if DATABASE in name:
            _refuse(name.removeprefix("file:").partition("?")[0], "opened with sqlite3")


def _refuse(name: str, how: str) -> None:
    if os.path.realpath(name) in _guarded:
        raise BrokerError(
            f"{name} must not be {how} by a process that uses it as a liteq store: closing "
            "it again drops SQLite's locks, and commits are lost. Copy it with another "
            "process while no worker runs, or through apsw's backup API"
        )
