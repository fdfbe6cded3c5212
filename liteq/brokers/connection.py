"""An SQLite file, opened so that nothing can be lost: connections and transactions.

Each rule here is a way in which SQLite queues have lost data:

- One connection per thread, none across a fork. A child that inherits so much as an
  idle connection believes it holds locks that it does not, and its commits vanish
  (sqlite.org/howtocorrupt.html, section 2.6). All connections are closed before a fork
  and opened again at the next use, in the parent and in the child alike; none is opened
  while another thread forks.
- Every transaction begins IMMEDIATE. One that reads first and then writes fails with
  BUSY_SNAPSHOT whatever the busy timeout says.
- A gate, an `flock` on a file of its own, is taken around each short write transaction.
  SQLite's own waiting is a random back-off under which one of eight writers was starved
  for seconds.
- Who upgrades the store writes its version into the gate before the commit. Whoever finds
  another there than it last did looks whether it may still use the store: a transaction
  of a process that is too old for it is never begun, and none of its reads is believed.
  (To ask SQLite each time takes ten times as long as those few bytes: 7 us.)
- SQLite goes on with a file that was deleted or replaced, and nobody else will ever read
  what it commits there. So each write begins with a look whether the file at our path is
  the one that is open, which takes 1 us; so does the first read of each second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, TypeVarTuple

import apsw

from liteq.brokers import schema
from liteq.brokers.files import (
    DATABASE,
    RESERVE,
    guard,
    make_file,
    make_folder,
    own_file,
    refuse_network_filesystem,
    refuse_other_owners,
    refuse_shared,
    unusable,
)
from liteq.clock import Clock, system_clock
from liteq.exceptions import (
    BrokerBusy,
    BrokerError,
    BrokerUnavailable,
    ImproperlyConfigured,
    QueueFull,
    SchemaError,
    StoreLost,
)
from liteq.shortage import of_descriptors
from liteq.texts import unencodable

__all__ = ["Database", "fetch_all", "fetch_one"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_GATE: Final = "gate"
_AT_ONCE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_SAFE_SQLITE: Final = (3, 51, 3)  # earlier ones can corrupt a WAL that two connections reset
_LEAST: Final = 64 * 1024  # bytes of disk: the shared memory of a WAL begins with half of that
_PARTS: Final = 10  # of the time that a writer waits at most
_BELIEVED: Final = 1.0  # seconds for which those who read believe that the file is there still
_GIVES_WAY: Final = 1.0  # seconds for which a thread lets a fork go first


class Database:
    """The connections of this process to one store folder (None: a store in memory).

    `durable=True` transactions are on disk when they return (`synchronous=FULL`);
    others survive the death of any process, and a power loss may undo the last of them.
    Mixing both is sound: a FULL commit also hardens all that came before it.
    """

    wal_backstop: int = 4_000  # pages (16 MiB): others than workers checkpoint beyond this

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        busy_timeout: float = 5.0,
        max_size: int | None = None,
        allow_network_filesystem: bool = False,
        allow_other_owner: bool = False,
        clock: Clock = system_clock,
    ) -> None:
        if _version(apsw.sqlite_lib_version()) < _SAFE_SQLITE:
            raise ImproperlyConfigured(
                f"SQLite {apsw.sqlite_lib_version()} can corrupt a WAL file that several "
                "processes write: install apsw 3.53 or later"
            )
        self.folder = os.fspath(folder) if folder is not None else None
        self.path = os.path.join(folder, DATABASE) if folder is not None else ":memory:"
        self.busy_timeout = busy_timeout
        self.max_size = max_size
        self.allow_network_filesystem = allow_network_filesystem
        self.allow_other_owner = allow_other_owner
        self.identity: tuple[int, int] | None = None
        self.losses = 0  # grows when the file is let go of: another store may follow
        self.wal_pages = 0
        self.wal_limit = self.wal_backstop
        self._clock = clock
        self._check_at = 0.0  # on the steady clock: when a read is to look again
        self.last_in_line = threading.Lock()  # of the threads at the gate: see `_queue_at_gate`
        self._local = threading.local()
        self._handles: weakref.WeakSet[_Handle] = weakref.WeakSet()
        self._memory = _Handle(self) if folder is None else None
        self._prepared = False
        with _opening:
            _databases.add(self)

    # Transactions

    def read(self, body: Callable[[apsw.Connection], T]) -> T:
        """Return what `body` reads in one snapshot. It must fetch all and finish: an
        open cursor keeps the WAL from being reset.

        Raises `StoreLost` once the file has been lost for a second.
        """
        if (now := self._clock.steady()) >= self._check_at:
            self._check_at = now + _BELIEVED
            self.check()
        return self._turn(_Handle.read, body)

    def write(
        self, body: Callable[[apsw.Connection], T], *, durable: bool, limited: bool = False
    ) -> T:
        """Run `body` in one write transaction and return what it returned.

        `limited` transactions (new messages) are refused with `QueueFull` while there is
        still room for the others, so a full store can be worked off.

        An error means that the outcome is unknown: a COMMIT that failed on a sick disk
        may be found done after a crash. `body` must be idempotent. After `StoreLost` it has
        not been run.
        """
        self.check()
        return self._turn(_Handle.write, body, durable, limited, limited=limited)

    def write_one(
        self, sql: str, bindings: Sequence[Any], *, durable: bool, limited: bool = False
    ) -> tuple[int, list[tuple[Any, ...]]]:
        """Run one statement as a transaction of its own; return how many rows it changed, and
        those that it returns.

        The same as `write()`, without the 8 us that BEGIN and COMMIT take.
        """
        self.check()
        return self._turn(_Handle.write_one, sql, bindings, durable, limited, limited=limited)

    def _turn(self, work: Callable[[_Handle, *Ts], T], *args: *Ts, limited: bool = False) -> T:
        """Return what `work` does with this thread's handle. If it is left by an exception,
        also one from a signal handler or for a time limit at any moment of it, nothing stays
        open or locked."""
        while True:
            handle = self._open_handle(limited=limited)
            with handle.lock:
                if handle.db is None:  # closed for a fork since
                    continue
                if handle.inside:
                    raise BrokerBusy(
                        "a signal handler may not use the store while the thread that it "
                        "interrupts does: have it set a flag, or start a thread"
                    )
                try:
                    answer = work(handle, *args)
                    handle.inside = False
                    return answer
                except BaseException as exc:
                    handle.undo()
                    if isinstance(exc, (apsw.Error, UnicodeError)):
                        raise self._translate(handle, exc) from exc
                    raise

    def changed(self) -> bool:
        """Tell whether others have committed anything since this thread last asked.

        SQLite keeps count of that for each connection (`PRAGMA data_version`). A store in
        memory has one for everybody, so there it cannot be told: True.
        """
        if self._memory is not None:
            return True
        return self._turn(_Handle.changed)

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Move what the WAL holds into the database, as far as readers allow."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        if self._turn(_Handle.checkpoint, mode):
            self.wal_pages = 0

    def check(self) -> None:
        """Raise `StoreLost` if the file at our path is not the one we have open.

        Commits to a deleted file succeed, and nobody will ever read them. What is open is
        let go of, so that a later use finds the file that is there then.
        """
        opened = self.identity
        if opened is None:
            return
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            why = "was deleted while in use"
        except OSError as exc:
            raise BrokerUnavailable(
                f"the store {self.path} cannot be found now ({exc.strerror}); nothing was "
                "written, and repeating it is safe"
            ) from exc
        else:
            if (found.st_dev, found.st_ino) != opened:
                why = "was replaced while in use"
            elif found.st_nlink != 1:
                why = (
                    "has a second hard link: another name for the file gets a WAL of its own, "
                    "and the two lose each other's commits"
                )
            else:
                return
        with _opening:
            if self.identity is opened:  # else another thread has let go of it
                self.forget()
        raise StoreLost(f"{self.path} {why}")

    def forget(self) -> None:
        """Let go of the file, so that the next use opens the one that is there then."""
        with _opening:  # or another thread would open it in between
            self.losses += 1  # first: who holds a connection yet, holds one to what is lost
            self.close()
            self.identity = None
            self._prepared = False

    def close(self) -> None:
        """Close the connections of all threads; the next use opens new ones."""
        with _opening:
            handles = self.handles()
        for handle in handles:
            with handle.lock:
                handle.close()

    # Connections

    def _open_handle(self, *, limited: bool) -> _Handle:
        """Return this thread's handle, its connection open. A fork by another thread may close
        that at any moment, unless the handle's lock is held."""
        handle: _Handle = getattr(self._local, "handle", None) or self._handle()
        # A fork would wait and wait for a thread that writes again and again.
        if _forking and _opening.acquire(timeout=_GIVES_WAY):
            _opening.release()
        if handle.db is not None:
            return handle
        # The order is the fork's: first the right to open, then the handle.
        with _opening, handle.lock:
            if handle.db is None:
                self.check()  # of the other threads', perhaps closed for a fork
                try:
                    handle.open()
                except apsw.Error as exc:
                    if limited and self._is_for_want_of_disk(exc):
                        raise QueueFull(
                            f"the store {self.path} has no room: no space is left on its "
                            "disk, not even to open it; nothing was stored. Free some"
                        ) from exc
                    raise self._translate(handle, exc) from exc
                except BrokerUnavailable:  # which is an OSError
                    raise
                except OSError as exc:
                    self.check()  # it may have gone since SQLite has opened it
                    raise unusable(exc) from exc
        return handle

    def _handle(self) -> _Handle:
        if self._memory is not None:  # one connection holds the whole store
            if self._memory.pid != os.getpid():
                raise BrokerUnavailable(
                    "a store in memory belongs to the process that made it, and this is a "
                    "forked child: use an sqlite:// store"
                )
            return self._memory
        handle: _Handle | None = getattr(self._local, "handle", None)
        if handle is None:
            handle = self._local.handle = _Handle(self)
            with _opening:
                self._handles.add(handle)
        return handle

    def prepare(self) -> None:
        """Create the folder and the file if need be, and refuse what cannot be safe."""
        if self._prepared or self.folder is None:
            return
        with _opening:
            make_folder(self.folder, allow_other_owner=self.allow_other_owner)
            if not self.allow_network_filesystem:
                refuse_network_filesystem(self.folder)
            make_file(self.path)
            guard(self.path)
            self._prepared = True

    def may_open(self) -> None:
        """Raise `ImproperlyConfigured` for a store that `prepare()` would refuse for its
        owners, and make nothing."""
        if self.folder is not None:
            refuse_shared(self.folder, allow_other_owner=self.allow_other_owner)

    def may_run(self) -> None:
        """Raise `ImproperlyConfigured` if somebody else decides what is in the store:
        to run it would lend them this user's rights, and root has all of them."""
        if self.folder is not None and not self.allow_other_owner:
            self.check()
            self.prepare()
            refuse_other_owners(self.folder)

    def _translate(self, handle: _Handle, exc: Exception) -> Exception:
        """Return liteq's error for SQLite's, closing the connection if it may be sick."""
        where = self.path
        if isinstance(exc, UnicodeEncodeError):  # of a value that was to be written or found
            return unencodable(exc)
        if isinstance(exc, apsw.FullError):
            handle.limited = None  # work out anew, next time, how much room there is
            return QueueFull(
                f"the store {where} has no room: its size limit or the disk is full, but for "
                f"the last {RESERVE >> 20} MiB, which are left to the workers ({exc}). "
                "Waiting messages can still be run; free space or raise max_size"
            )
        if isinstance(exc, (apsw.BusyError, apsw.LockedError)):
            return BrokerBusy(
                f"the store {where} was locked by others for {self.busy_timeout:g} s"
            )
        # SQLite does not look into texts, so one of its rows may hold what is none.
        if isinstance(exc, (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError)):
            handle.close()
            return BrokerError(
                f"the store {where} is damaged ({exc}): stop all workers and restore a backup"
            )
        if isinstance(
            exc, (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.AuthError)
        ):
            handle.close()  # after a failed fsync the page cache may lie: read it afresh
            if (lost := self._lost(handle)) is not None:
                return lost
            # SQLite does not tell why it cannot open a file: it needs four for each thread.
            lacking = of_descriptors(4) if isinstance(exc, apsw.CantOpenError) else None
            if lacking is None and self._is_for_want_of_disk(exc):
                lacking = f"no space left on its disk: free some ({exc})"
            return BrokerUnavailable(
                f"the store {where} cannot be used now ({lacking or exc}); whether the "
                "last step was written is unknown, and repeating it is safe"
            )
        if isinstance(exc, apsw.SQLError):  # a later version may have renamed what we look for
            try:
                handle.check_version()
            except SchemaError as refusal:
                return refusal
        return exc

    def _lost(self, handle: _Handle) -> StoreLost | None:
        """Return the error that it is if the file went while SQLite used it, which says no more
        of that than of a sick disk. The handle's lock falls meanwhile: see `_open_handle`."""
        handle.lock.release()
        try:
            self.check()
        except StoreLost as lost:
            return lost
        except BrokerUnavailable:
            return None
        finally:
            handle.lock.acquire()
        return None

    def _is_for_want_of_disk(self, exc: Exception) -> bool:
        """Tell whether there is no room for what SQLite keeps beside the file: it says no more
        of that than of a sick disk."""
        if self.folder is None or not isinstance(exc, (apsw.IOError, apsw.CantOpenError)):
            return False
        try:
            disk = os.statvfs(self.folder)
        except OSError:
            return False
        no_files = disk.f_files > 0 and disk.f_favail == 0
        return no_files or disk.f_bavail * disk.f_frsize < _LEAST

    def handles(self) -> list[_Handle]:
        """Return the handles of all threads."""
        return [self._memory] if self._memory is not None else list(self._handles)

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, the handles of threads that do not exist in it."""
        self.last_in_line = threading.Lock()
        self._local = threading.local()
        self._handles = weakref.WeakSet()


def fetch_one(db: apsw.Connection, sql: str, bindings: Sequence[Any] = ()) -> Any:
    """Return the first row (its value, if it has one column), or None. All rows are read: see
    `fetch_all`."""
    found = db.execute(sql, bindings).get
    return found[0] if type(found) is list else found  # of one row no list is made


def fetch_all(
    db: apsw.Connection, sql: str, bindings: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    """Return all rows, having let go of the statement: a half-read one would keep the WAL
    from being reset."""
    return db.execute(sql, bindings).fetchall()


class _Handle:
    """One thread's connection and its file descriptor for the gate."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.pid = os.getpid()
        self.lock = threading.RLock()  # against the thread that closes all before it forks
        self.db: apsw.Connection | None = None
        self.durable: bool | None = None
        self.limited: bool | None = None
        self.gate = -1
        self.inside = False  # a transaction of its thread: see `Database._turn`
        self.in_line = False  # see `_queue_at_gate`
        self.version: bytes | None = None  # what the gate said when that was found to be so
        self.data_version: int | None = None  # see `Database.changed()`

    def open(self) -> apsw.Connection:
        database = self.database
        database.prepare()
        flags = apsw.SQLITE_OPEN_READWRITE
        if database.folder is None:
            flags |= apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_MEMORY
        else:
            flags |= apsw.SQLITE_OPEN_NOFOLLOW
            self._change_gate()
        db = apsw.Connection(database.path, flags=flags)
        try:
            # The timeout comes first: to open a file whose last user died takes locks, too.
            db.set_busy_timeout(int(database.busy_timeout * 1000))
            self._configure(db)
            self._make(db)
            self.version = None
        except BaseException:
            db.close()
            self._close_gate()
            raise
        self.db = db
        self.durable = self.limited = self.data_version = None
        if database.folder is not None:
            found = os.stat(database.path)
            if database.identity is None:
                database.identity = (found.st_dev, found.st_ino)
        return db

    def _configure(self, db: apsw.Connection) -> None:
        # Every pragma liteq relies on is set here: a host's connection hooks ran before.
        if self.database.folder is not None:
            db.set_wal_hook(_WalHook(self.database))
        # A plan must not hang on bound values: with them it does, and apsw's rebinding makes
        # SQLite compile such a statement anew at each run (a claim: 144 us against 15).
        db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        db.pragma("mmap_size", 0)  # an I/O error in mapped memory is a signal, not an error
        db.pragma("temp_store", "MEMORY")
        db.pragma("trusted_schema", 0)
        db.pragma("journal_size_limit", 64 * 1024 * 1024)
        db.pragma("foreign_keys", 0)

    def _make(self, db: apsw.Connection) -> None:
        """Make the file into a store of this version, if it is none.

        That is a matter of one process at a time. A store that is made is opened without a
        turn at the gate, for who was stopped there must keep nobody from reading.
        """
        in_file = self.database.folder is not None
        if in_file and db.pragma("journal_mode") == "wal" and schema.is_made(db):
            return
        try:
            self._enter_gate()
            if in_file:
                if db.pragma("page_count") == 0:
                    db.pragma("auto_vacuum", "INCREMENTAL")
                if (mode := db.pragma("journal_mode", "WAL")) != "wal":
                    raise ImproperlyConfigured(
                        f"{self.database.path}: WAL mode was refused (journal_mode is {mode})"
                    )
            schema.ensure(db, self._announce)
        finally:
            self.leave_gate()

    # What is done in a turn: see the methods of `Database` that have these names

    def read(self, body: Callable[[apsw.Connection], T]) -> T:
        db = self.connection()
        self.inside = True
        db.execute("BEGIN")
        answer = body(db)
        db.execute("COMMIT")
        self.check_version()  # afterwards: it was upgraded before the snapshot, or not
        return answer

    def write(
        self,
        body: Callable[[apsw.Connection], T],
        durable: bool,  # noqa: FBT001
        limited: bool,  # noqa: FBT001
    ) -> T:
        db = self.prepare(durable=durable, limited=limited)
        self.pass_gate()
        self.inside = True
        db.execute("BEGIN IMMEDIATE")
        answer = body(db)
        db.execute("COMMIT")
        self.leave_gate()
        self._shorten_wal_if_long()
        return answer

    def write_one(
        self,
        sql: str,
        bindings: Sequence[Any],
        durable: bool,  # noqa: FBT001
        limited: bool,  # noqa: FBT001
    ) -> tuple[int, list[tuple[Any, ...]]]:
        db = self.prepare(durable=durable, limited=limited)
        self.pass_gate()
        self.inside = True
        rows = db.execute(sql, bindings).fetchall()  # with the last it is committed
        changed = db.changes()
        self.leave_gate()
        self._shorten_wal_if_long()
        return changed, rows

    def changed(self) -> bool:
        before = self.data_version
        self.data_version = fetch_one(self.connection(), "PRAGMA data_version")
        return before != self.data_version

    def checkpoint(self, mode: int) -> bool:
        db = self.connection()
        db.set_busy_timeout(0)  # a worker must not wait seconds here for somebody's reader
        try:
            db.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return False  # a reader is in the way: the next slice of upkeep tries again
        finally:
            db.set_busy_timeout(int(self.database.busy_timeout * 1000))
        return True

    def undo(self) -> None:
        """Leave the transaction that an exception has ended, and the gate."""
        self.inside = False
        try:
            if self.db is not None and not self.db.get_autocommit():
                self.db.execute("ROLLBACK")
        except apsw.Error:  # a sick disk
            self.close()  # which rolls it back, too
        finally:
            self.leave_gate()

    def connection(self) -> apsw.Connection:
        """Return the connection, which `Database._open_handle()` has opened."""
        db = self.db
        assert db is not None
        return db

    def prepare(self, *, durable: bool, limited: bool) -> apsw.Connection:
        """Return the connection, set up for a transaction of this kind."""
        db = self.db
        assert db is not None
        if self.durable is not durable:
            self.set_durable(durable)
        if self.limited is not limited:
            self.set_limited(limited)
        return db

    def set_durable(self, durable: bool) -> None:  # noqa: FBT001 (one private caller)
        db = self.connection()
        if self.database.folder is not None:
            db.pragma("synchronous", "FULL" if durable else "NORMAL")
        self.durable = durable

    def set_limited(self, limited: bool) -> None:  # noqa: FBT001 (one private caller)
        """Hold this connection, or not, to the size at which producers are refused.

        `max_page_count` counts for one connection only (measured), so a full store
        refuses producers while workers go on settling and deleting.
        """
        db = self.connection()
        pages = 0xFFFFFFFE
        if limited:
            pages = self._producer_pages(db)
        db.pragma("max_page_count", pages)
        self.limited = limited

    def _producer_pages(self, db: apsw.Connection) -> int:
        size: int = db.pragma("page_size")
        used: int = db.pragma("page_count") - db.pragma("freelist_count")
        limits = [0xFFFFFFFE]
        if self.database.max_size is not None:
            limits.append(self.database.max_size // size)
        if self.database.folder is not None:
            disk = os.statvfs(self.database.folder)
            free = disk.f_bavail * disk.f_frsize - RESERVE
            limits.append(max(used, used + free // size))
        return max(1, min(limits))

    def pass_gate(self) -> None:
        """Wait for our turn to write, at most `busy_timeout` seconds. Raises `SchemaError`
        if the store has become too new for this process."""
        if self.gate < 0:
            return
        self._enter_gate()
        while not os.fstat(self.gate).st_nlink:  # removed: who came later has another
            self._change_gate()
            self._enter_gate()
        if os.pread(self.gate, 16, 0) == self.version:  # as nearly always
            return
        self.check_version()

    def check_version(self) -> None:
        """Raise `SchemaError` if the store has become too new for this process."""
        if self.gate < 0 or (announced := os.pread(self.gate, 16, 0)) == self.version:
            return
        found = schema.refuse_later(self.connection())
        # Otherwise an upgrade is under way, or has failed: nobody will announce it again.
        if announced in (b"", b"%d\n" % found):
            self.version = announced

    def _change_gate(self) -> None:
        """Open the gate that is there now, and let go of one that was removed. Upgrades were
        announced at the new one, or there is no word of them: the store itself is asked."""
        folder = self.database.folder
        assert folder is not None
        gate = own_file(os.path.join(folder, _GATE), os.O_RDWR)
        self._close_gate()
        self.gate = gate
        self.version = None

    def _announce(self) -> None:
        if self.gate >= 0:
            os.pwrite(self.gate, b"%d\n" % schema.VERSION, 0)

    def _enter_gate(self) -> None:
        """`flock` has no timeout, so a taken gate is tried again after pauses that grow
        shorter with age: who has waited longest tries most often."""
        if self.gate < 0:
            return
        try:
            fcntl.flock(self.gate, _AT_ONCE)
        except BlockingIOError:
            self._queue_at_gate()

    def _queue_at_gate(self) -> None:
        """Stand in line with the threads of this process: of a hundred that wait only the first
        looks at the gate, or they would take the processor from the one inside.

        Each holds a lock until its own turn is over, and waits for that of the one before it.
        So the line breaks for nobody, wherever an exception hits one of them: the next goes on.
        """
        if self.in_line:  # a signal handler writes: its thread would wait for itself
            self._watch_gate(0.0)
            return
        place = threading.Lock()
        with place:
            before, self.database.last_in_line = self.database.last_in_line, place
            try:
                self.in_line = True
                self._watch_gate(self._wait_for(before))
            finally:
                self.in_line = False

    def _wait_for(self, turn: threading.Lock) -> float:
        """Wait until that turn is over, as long as a writer waits at most; return for how
        many seconds."""
        part = self.database.busy_timeout / _PARTS  # see `_watch_gate`
        waited = 0.0
        while waited < self.database.busy_timeout and not turn.acquire(timeout=part):
            waited += part
        return waited

    def _watch_gate(self, before: float) -> None:
        """Wait until the gate is free. `before`: for how many seconds we have stood in line."""
        # No more of it than a part counts for one look: a process that was stopped, or a
        # machine that slept, has not been waiting meanwhile, and tries again before it blames
        # another.
        most = self.database.busy_timeout / _PARTS
        waited, looked = 0.0, time.monotonic()
        pause = 0.001
        while True:
            # 0.2 to 1.0 of it. Not by `random`: a worker would carry that, 0.6 MiB, from the
            # first time that it has met another writer.
            time.sleep((0.2 + 0.8 * os.urandom(1)[0] / 255) * pause)
            try:
                fcntl.flock(self.gate, _AT_ONCE)
            except BlockingIOError:
                now = time.monotonic()
                waited, looked = waited + min(now - looked, most), now
                if before + waited > self.database.busy_timeout:
                    raise BrokerBusy(
                        f"others have been writing to {self.database.path} for "
                        f"{before + waited:.1f} s: is one stopped in a transaction?"
                    ) from None
                # The longer it has waited the sooner it looks again; but dozens that do so take
                # the processor from who is inside, and then it is for each to step back.
                pause = max(0.0001, 0.001 - waited / 10, min(0.01, (waited - 0.2) / 20))
            else:
                return

    def _shorten_wal_if_long(self) -> None:
        """Move the WAL into the database if no worker has.

        Most of it while others go on writing: under the gate, all of them would wait for
        megabytes and two syncs. The rest under the gate, for only when all has been
        moved does the next writer begin the WAL anew.
        """
        if self.database.wal_pages <= self.database.wal_limit:
            return
        # Should a reader keep us from it: try again a thousand pages later, not each time.
        self.database.wal_limit = self.database.wal_pages + 1_000
        db = self.connection()
        with contextlib.suppress(apsw.BusyError):  # another process is at it
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            try:
                self._enter_gate()
                db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            finally:
                self.leave_gate()

    def leave_gate(self) -> None:
        if self.gate >= 0:
            fcntl.flock(self.gate, fcntl.LOCK_UN)

    def close(self) -> None:
        db, self.db = self.db, None
        if db is not None:
            # The last connection moves the WAL into the database. A disk that refuses that
            # loses nothing: the WAL stays, and is read by who opens the store next.
            with contextlib.suppress(apsw.IOError, apsw.FullError):
                db.close()
        self._close_gate()

    def __del__(self) -> None:
        # The thread is over. In a forked child this is not ours to close, and is closed.
        # A weak reference still finds an object whose finaliser runs: with no lock, a fork
        # at this moment would close the same descriptor twice, or another's by its number.
        if self.pid == os.getpid():
            with self.lock:
                self.close()

    def _close_gate(self) -> None:
        gate, self.gate = self.gate, -1
        if gate >= 0:
            os.close(gate)


class _WalHook:
    """Counts the pages of the WAL. (A method of the handle would tie it to its own
    connection, and the connection of a thread that ended would stay open.)"""

    def __init__(self, database: Database) -> None:
        self._database = weakref.ref(database)

    def __call__(self, db: apsw.Connection, _name: str, pages: int) -> int:
        if (database := self._database()) is not None:
            database.wal_pages = pages
            if pages < database.wal_backstop:
                database.wal_limit = database.wal_backstop
        return apsw.SQLITE_OK


# Forks

_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_opening = threading.RLock()  # held to open a connection, and throughout a fork
_held: list[_Handle] = []
_forking = False


def _before_fork() -> None:
    """Close every connection, each after its transaction, and let none be opened."""
    global _forking
    _opening.acquire()
    _forking = True
    for database in list(_databases):
        for handle in database.handles():
            handle.lock.acquire()
            _held.append(handle)
            if database.folder is not None:
                handle.close()


def _after_fork_in_parent() -> None:
    global _forking
    _forking = False
    while _held:
        _held.pop().lock.release()
    _opening.release()


def _after_fork_in_child() -> None:
    _after_fork_in_parent()  # what the thread that forked held, its copy holds
    for database in list(_databases):
        database.reset_after_fork()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
