"""Power loss by record and replay: what a disk may hold after the power went at any moment.

A `Recorder` is a file system for SQLite that writes down every write, truncation and
completed sync, while all goes on as usual. `Disk` is what of it was certainly on the disk
at some moment, and what of the rest may have been, in any order, torn at sector borders.

Left out, as SQLite leaves it to the file system: the `-shm` file, which is never synced
and is rebuilt, and whether a new file's name had reached its folder (here it has).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import apsw

__all__ = ["STRATEGIES", "Disk", "Event", "Recorder"]

SECTOR = 512

Strategy: TypeAlias = Literal["none", "prefix", "subset", "torn"]
STRATEGIES: tuple[Strategy, ...] = ("none", "prefix", "subset", "torn")


class Event(NamedTuple):
    """What was done to a file, or "mark": what the program knew at this point.

    `at` is on the clock that all processes share: when a write began, when a sync had
    ended. So a log of several processes sorted by it is one that may have happened.
    """

    at: float
    what: Literal["write", "truncate", "sync", "delete", "mark"]
    file: str  # "store.db" or "store.db-wal"; of a mark: what it says
    offset: int = 0  # of a truncation: the new size
    data: bytes = b""


class Recorder(apsw.VFS):
    """The default file system of this process for as long as it is registered."""

    def __init__(self, name: str) -> None:
        self.log: list[Event] = []
        self.base = apsw.vfs_names()[0]
        super().__init__(name, self.base, makedefault=True)

    def xOpen(self, name: Any, flags: Any) -> _File:  # noqa: N802 (SQLite's name)
        return _File(self, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        super().xDelete(name, sync)
        self.note("delete", os.path.basename(name))

    def note(self, what: Any, file: str, offset: int = 0, data: bytes = b"") -> None:
        self.log.append(Event(time.monotonic(), what, file, offset, data))

    def mark(self, text: str) -> None:
        self.note("mark", text)


class _File(apsw.VFSFile):
    def __init__(self, disk: Recorder, name: Any, flags: Any) -> None:
        self.disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.name = os.path.basename(path or "")
        super().__init__(disk.base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self.name:  # temporary files have none
            self.disk.note("write", self.name, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        if self.name:
            self.disk.note("truncate", self.name, size)
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        if self.name:
            self.disk.note("sync", self.name)


class Disk:
    """The files as they certainly are (`durable`), and what has been asked of them since
    their last sync (`pending`)."""

    def __init__(self) -> None:
        self.durable: dict[str, bytearray] = {}
        self.pending: dict[str, list[Event]] = {}

    def apply(self, event: Event) -> None:
        """Move on by one event of the log."""
        match event.what:
            case "write" | "truncate":
                self.pending.setdefault(event.file, []).append(event)
            case "sync":
                content = self.durable.setdefault(event.file, bytearray())
                for one in self.pending.pop(event.file, ()):
                    _do(content, one)
            case "delete":
                self.durable.pop(event.file, None)
                self.pending.pop(event.file, None)
            case "mark":
                pass

    def image(self, folder: Path, strategy: Strategy, chance: random.Random) -> None:
        """Write into an empty folder what the disk may hold if the power goes now.

        Of what was not synced: nothing, all up to a point, some, or some with writes that
        were torn between two sectors.
        """
        for name in self.durable.keys() | self.pending.keys():
            content = bytearray(self.durable.get(name, b""))
            for event in _survivors(self.pending.get(name, []), strategy, chance):
                _do(content, event)
            (folder / name).write_bytes(content)


def _survivors(pending: list[Event], strategy: Strategy, chance: random.Random) -> list[Event]:
    match strategy:
        case "none":
            return []
        case "prefix":
            return pending[: chance.randint(0, len(pending))]
        case "subset":
            return [event for event in pending if chance.random() < 0.5]
        case "torn":
            kept = [event for event in pending if chance.random() < 0.7]
            return [_tear(event, chance) for event in kept]


def _tear(event: Event, chance: random.Random) -> Event:
    """Keep a run of sectors of a write, from either end."""
    sectors = len(event.data) // SECTOR
    if event.what != "write" or not sectors:
        return event
    cut = chance.randint(0, sectors) * SECTOR
    if chance.random() < 0.5:
        return event._replace(data=event.data[:cut])
    return event._replace(offset=event.offset + cut, data=event.data[cut:])


def _do(content: bytearray, event: Event) -> None:
    if event.what == "truncate":
        del content[event.offset :]
        return
    end = event.offset + len(event.data)
    if len(content) < event.offset:
        content.extend(bytes(event.offset - len(content)))
    content[event.offset : end] = event.data
