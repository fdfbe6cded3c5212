"""Looking after an SQLite store's file: backup, restore, check, vacuum, figures.

A backup is one step of SQLite's backup API, so it is a moment of the store while workers go
on (sqlite.org/backup.html: copied in many steps, it would begin anew after each foreign
write). A restore is one transaction in the file that is there, so whoever has it open goes
on with what was restored, and a crash leaves the one or the other.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from liteq.brokers import schema
from liteq.brokers.connection import Database, fetch_all, fetch_one
from liteq.brokers.files import DATABASE, forbidden, found, is_there
from liteq.brokers.liveness import LockFiles
from liteq.brokers.schema import STATE_CODES
from liteq.exceptions import BrokerError, BrokerUnavailable, ImproperlyConfigured, SchemaError
from liteq.message import GATHER
from liteq.shortage import advice

__all__ = ["Keeper", "Reclaimed", "workers_alive"]

_WAL: Final = f"{DATABASE}-wal"
_SLICE: Final = 2_000  # free pages that one transaction gives back to the disk
_GATHERS: Final = f"SELECT state, count(*) FROM message WHERE task = '{GATHER}' GROUP BY state"
_HANGING: Final = (
    ("attempt", "attempts", "message"),
    ("input", "inputs", "target"),
    ("edge", "edges", "source"),
    ("waiter", "waiters", "message"),
)


class Reclaimed(NamedTuple):
    """What a vacuum gave back: bytes before and after, the WAL included."""

    before: int
    after: int


class Keeper:
    """Looks after the file of one store (of one in memory there is nothing to keep)."""

    def __init__(self, database: Database) -> None:
        if database.folder is None:
            raise BrokerError("a store in memory ends with its process: there is no file")
        self.folder = Path(database.folder)
        self.path = database.path
        self._database = database

    def version(self) -> int | None:
        """Return the schema version of the file as it is, None if there is no file yet."""
        if not is_there(self.folder):
            return None
        with self._store() as db:
            return int(db.pragma("user_version"))

    def migrate(self) -> tuple[int | None, int]:
        """Bring the file to this liteq's schema; return the versions before and after.

        Raises `SchemaError` if it belongs to a later liteq.
        """
        before = self.version()
        self._database.read(lambda db: None)  # opening it does that
        after = self.version()
        assert after is not None
        return before, after

    def backup(self, target: Path, *, force: bool = False) -> int:
        """Write a copy of the store as it is at one moment to a file; return its bytes.

        The copy is checked, private (0600), one file without a WAL, and there as a whole or
        not at all. Raises `ImproperlyConfigured` if the target is there, unless with `force`,
        and if its folder is not, or cannot be written to.
        """
        if os.path.isdir(target):
            raise ImproperlyConfigured(f"{target} is a folder: name a file for the backup")
        if os.path.exists(target) and not force:
            raise ImproperlyConfigured(
                f"{target} exists already: name another file, or use --force"
            )
        if target.resolve().parent == self.folder:
            raise ImproperlyConfigured(
                f"{target} is in the store's own folder: a backup belongs on another disk"
            )
        partial = target.with_name(f".{target.name}.partial")
        _make_anew(partial, target)
        try:
            with self._store() as source, self._opened(str(partial)) as copy:
                _copy(source, copy)
                copy.pragma("journal_mode", "DELETE")
                _refuse_damage(copy, str(partial))
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            for name in (
                str(partial),
                f"{partial}-wal",
                f"{partial}-shm",
                f"{partial}-journal",
            ):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        _sync_folder(target.parent)
        return target.stat().st_size

    def restore(self, backup: Path) -> Path | None:
        """Make the store what it was in a backup; return where what it held until now is
        kept, None if there was no store.

        What ran at the time of the backup is given back by the caller's next `reclaim()`.
        Raises `BrokerError` while a worker lives, or if the backup is damaged, and
        `ImproperlyConfigured` for a file that is not a backup.
        """
        self._database.may_open()
        if alive := workers_alive(self.folder):
            raise BrokerError(
                f"stop the workers of {self.folder} first: {len(alive)} still alive "
                f"(holding {', '.join(alive[:3])})"
            )
        try:
            is_file = stat.S_ISREG(backup.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            is_file = False
        except OSError as exc:
            raise ImproperlyConfigured(
                f"the backup {backup} cannot be read: {exc.strerror}"
            ) from exc
        if not is_file:
            raise ImproperlyConfigured(f"there is no backup {backup}")
        with self._opened(str(backup)) as source:
            _refuse_foreign(source, str(backup))
            _refuse_damage(source, str(backup))
            aside = self._set_aside()
            self._database.close()
            self._database.prepare()
            with self._store() as target:
                if target.pragma("page_count") == 0:
                    target.pragma("auto_vacuum", "INCREMENTAL")
                    target.pragma("journal_mode", "WAL")
                _copy(source, target)
        self._database.write(_forget_who_was_there, durable=True)
        return aside

    def check(self, *, full: bool = False) -> list[str]:
        """Return what is wrong with the file, in a sentence each: nothing for a sound one.

        `full`: compare the indexes with the tables as well, which takes several times longer.
        """
        with self._store() as db:
            found = _damage(db, "integrity_check" if full else "quick_check")
            if found:
                return found
            if db.pragma("journal_mode") != "wal":
                found.append(f"journal_mode is {db.pragma('journal_mode')}, not wal")
            for table, noun, column in _HANGING:
                lost = fetch_one(
                    db,
                    f"SELECT count(*) FROM {table} WHERE {column} NOT IN "
                    "(SELECT seq FROM message)",
                )
                if lost:
                    found.append(f"{lost} {noun} of messages that are gone")
            missing = fetch_one(
                db,
                "SELECT count(*) FROM message INDEXED BY message_running WHERE state = 3 "
                "AND worker NOT IN (SELECT id FROM worker)",
            )
            if missing:
                found.append(f"{missing} running messages of workers that never existed")
        return found

    def vacuum(self, *, full: bool = False) -> Reclaimed:
        """Give free pages back to the disk, slice by slice while workers go on.

        `full` writes the whole file anew, in one piece. Raises `BrokerError` then, if a
        worker lives: it would have to wait longer than it does.
        """
        before = self._bytes()
        if full:
            if alive := workers_alive(self.folder):
                raise BrokerError(
                    f"a full vacuum would hold up live workers (there are {len(alive)}): stop "
                    "them, or leave out --full"
                )
            self._database.read(lambda db: None)
            with self._store() as db:
                db.execute("VACUUM")
        else:
            while self._database.write(_shrink, durable=False):
                pass
        self._database.checkpoint(truncate=True)
        return Reclaimed(before, self._bytes())

    def stats(self) -> dict[str, Any]:
        """Return figures of the file: sizes in bytes, and how many messages are in which state.

        Gathers are no work, and are left out: to find them, all messages are read (a million:
        0.1 s, if they are in memory). What has succeeded is what remains of the others.
        """

        def read(db: apsw.Connection) -> dict[str, Any]:
            size = db.pragma("page_size")
            gathers = dict(fetch_all(db, _GATHERS))
            states = {
                name: fetch_one(db, f"SELECT count(*) FROM message WHERE {_where(code)}")
                - gathers.get(code, 0)
                for name, code in STATE_CODES.items()
                if name != "succeeded"
            }
            total = fetch_one(db, "SELECT count(*) FROM message") - sum(gathers.values())
            states["succeeded"] = total - sum(states.values())
            return {
                "version": db.pragma("user_version"),
                "page_size": size,
                "database": db.pragma("page_count") * size,
                "free": db.pragma("freelist_count") * size,
                "messages": total,
                "states": {name: number for name, number in states.items() if number},
                "dead": fetch_one(db, "SELECT count(*) FROM message WHERE dead IS NOT NULL"),
                "attempts": fetch_one(db, "SELECT count(*) FROM attempt"),
                "edges": fetch_one(db, "SELECT count(*) FROM edge"),
                "workflows": fetch_one(db, "SELECT count(*) FROM workflow"),
                "schedules": fetch_one(db, "SELECT count(*) FROM schedule"),
            }

        figures = self._database.read(read)
        return {"path": self.path, **figures, "wal": _size(self.folder / _WAL)}

    def wal_bytes(self) -> int:
        return _size(self.folder / _WAL)

    def _bytes(self) -> int:
        return _size(Path(self.path)) + self.wal_bytes()

    def _set_aside(self) -> Path | None:
        """Keep what the store holds, under a name beside it."""
        if not _size(Path(self.path)):
            return None
        kept = Path(f"{self.path}.before-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
        try:
            with self._store() as source:
                _refuse_damage(source, self.path)
                os.close(os.open(kept, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
                with self._opened(str(kept)) as copy:
                    _copy(source, copy)
                    copy.pragma("journal_mode", "DELETE")
        except BrokerUnavailable:  # there is no room for two
            kept.unlink(missing_ok=True)
            raise
        except (BrokerError, apsw.Error):
            # Damaged: nothing can be copied into it, so all of it makes way. The WAL goes
            # with its database: under the new one it would be replayed into that.
            kept.unlink(missing_ok=True)
            self._database.close()
            for end in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self.path}{end}", f"{kept}{end}")
            self._database.forget()
        return kept

    def _store(self) -> contextlib.AbstractContextManager[apsw.Connection]:
        self._database.may_open()
        return self._opened(self.path)

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[apsw.Connection]:
        """Open a file beside the store's connections, with apsw as they are."""
        try:
            db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
            db.set_busy_timeout(int(self._database.busy_timeout * 1000))
            try:
                yield db
            finally:
                db.close()
        except apsw.FullError as exc:  # its text would be of the copy's source: "not an error"
            raise BrokerUnavailable(
                f"{path} cannot be written: no space left on its disk: free some"
            ) from exc
        except apsw.Error as exc:
            raise BrokerError(f"{path} cannot be read: {exc}") from exc


def workers_alive(folder: Path) -> list[str]:
    """Return the lock files of workers that live: the kernel's word, whatever state the
    database is in."""
    locks = LockFiles(folder / "workers")
    try:
        names = sorted(os.listdir(locks.folder))
    except FileNotFoundError:
        return []
    except PermissionError as exc:
        raise forbidden(exc) from exc
    return [name for name in names if name.endswith(".lock") and not locks.is_dead(name)]


def _forget_who_was_there(db: apsw.Connection) -> None:
    """Have nobody in a backup be there now: a waiter's address may be another's, and a worker,
    whose lock is gone, is as one of before the machine was last booted."""
    db.execute("DELETE FROM waiter")
    db.execute("UPDATE worker SET boot = 'restored' WHERE stopped_at IS NULL")


def _make_anew(partial: Path, target: Path) -> None:
    """Make the file that a backup is written to before it gets its name."""
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except OSError as exc:
        if advice(exc) is not None:  # it is not for its name that it cannot be made
            raise
        raise ImproperlyConfigured(
            f"{target} cannot be written ({exc.strerror}): name a file in a folder that is "
            "there, and that you may write to"
        ) from exc


def _copy(source: apsw.Connection, target: apsw.Connection) -> None:
    with target.backup("main", source, "main") as copying:
        while not copying.done:
            copying.step(-1)


def _damage(db: apsw.Connection, how: str) -> list[str]:
    try:
        rows = [str(row[0]) for row in fetch_all(db, f"PRAGMA {how}(20)")]
    except (apsw.CorruptError, apsw.NotADBError) as exc:
        return [str(exc)]
    return [] if rows == ["ok"] else rows


def _refuse_damage(db: apsw.Connection, path: str) -> None:
    if found := _damage(db, "quick_check"):
        raise BrokerError(f"{path} is damaged: {found[0]}")


def _refuse_foreign(db: apsw.Connection, path: str) -> None:
    try:
        mine = db.pragma("application_id") == schema.APPLICATION_ID
        version = db.pragma("user_version")
    except apsw.Error as exc:
        raise ImproperlyConfigured(f"{path} is not a backup of a liteq store: {exc}") from exc
    if not mine:
        raise ImproperlyConfigured(f"{path} is not a backup of a liteq store")
    if version > schema.VERSION:
        raise SchemaError(
            f"the backup {path} has schema version {version}, made by a later liteq, and this "
            f"one reads up to {schema.VERSION}: upgrade liteq here"
        )


def _shrink(db: apsw.Connection) -> bool:
    before = db.pragma("freelist_count")
    fetch_all(db, f"PRAGMA incremental_vacuum({_SLICE})")
    left = int(db.pragma("freelist_count"))
    return 0 < left < int(before)


def _where(code: int) -> str:
    """Return the condition of a state, in the words of the index that has it."""
    return f"state IN (7, 8, 9) AND state = {code}" if code >= 7 else f"state = {code}"


def _size(path: Path) -> int:
    there = found(path)
    return 0 if there is None else there.st_size


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
