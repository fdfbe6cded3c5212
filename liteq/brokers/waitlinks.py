"""Who waits for one message: a link in the store's `waits` folder, named like the message, to
the mailbox of the waiter (see `wakeup`).

So who waits writes nothing into the store, where a worker may be about to claim that very
message. Who has ended messages takes their links after the commit; who leaves a link looks at
its message after that. So one of them sees what the other did, whichever was first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from typing import Final

from liteq.brokers.files import own_folder

__all__ = ["WaitLinks"]

_LONGEST: Final = 200  # characters of an id that is taken for the name of a file
_FEW: Final = 4  # messages whose links are looked for one by one, and not in the list of all
_CROWD: Final = 8  # times as many links as messages: too many to list


class WaitLinks:
    """The links of one store. All of it may be called by any process, at any time."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        self._crowd = 0  # links, when they were last listed; less since then

    def leave(self, id: str, mailbox: str) -> bool:
        """Leave a link from a message to a mailbox; False: there is one, or none can be
        made, for the id is no name for a file, or the file system takes no links."""
        if not _is_plain(id):
            return False
        path = self._path(id)
        try:
            try:
                os.symlink(mailbox, path)
            except FileNotFoundError:
                own_folder(self.folder)
                os.symlink(mailbox, path)
        except OSError:
            return False
        return True

    def leads(self, id: str, mailbox: str) -> bool:
        """Tell whether a message's link leads to this mailbox."""
        return self._target(id) == mailbox

    def withdraw(self, id: str, mailbox: str) -> None:
        """Take back a link, if it is there still."""
        if self.leads(id, mailbox):
            self._remove(id)

    def take(self, ids: Collection[str]) -> list[tuple[str, str]]:
        """Take away the links of messages that have ended; return their mailboxes and ids.

        For a few messages, or among very many links, each is looked for; else one list of all
        links costs less.
        """
        if len(ids) > _FEW and self._crowd <= len(ids) * _CROWD:
            try:
                there = os.listdir(self.folder)
            except OSError:  # nobody has ever waited, or no descriptor is left: see `wakeup`
                return []
            self._crowd = len(there)
            ids = set(ids).intersection(there) if there else ()
        else:
            self._crowd -= len(ids)  # it is listed again some day
        taken = []
        for id in ids:
            mailbox = self._target(id)
            if mailbox is not None:
                self._remove(id)
                taken.append((mailbox, id))
        return taken

    def prune(self, mailboxes: str) -> None:
        """Remove the links that lead to nothing in this folder: their owners were killed."""
        with contextlib.suppress(OSError):
            # In this order: whoever leaves a link has a mailbox by then.
            links = [(id, self._target(id)) for id in os.listdir(self.folder)]
            there = set(os.listdir(mailboxes))
            for id, mailbox in links:
                if mailbox is not None and mailbox not in there:
                    self.withdraw(id, mailbox)

    def _path(self, id: str) -> str:
        return f"{self.folder}/{id}"

    def _target(self, id: str) -> str | None:
        if not _is_plain(id):
            return None
        try:
            return os.readlink(self._path(id))
        except OSError:
            return None

    def _remove(self, id: str) -> None:
        with contextlib.suppress(OSError):  # another has just taken it
            os.unlink(self._path(id))


def _is_plain(id: str) -> bool:
    """Tell whether an id is surely the name of a file, and of no other id's: ours all are."""
    plain = id.replace("-", "").replace("_", "")
    return plain.isalnum() and plain.isascii() and len(id) <= _LONGEST
