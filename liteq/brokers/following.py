"""What follows an end in an SQLite store, within the transaction that ends it.

A message that has ended gives what waited for it its input, or its own end, and so on
down. `pending` of a message is how many of its edges are not met yet; it is kept right
in those that ended `upstream` too, so that a redrive can tell what they still wait for.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import apsw

from liteq import failure, parts
from liteq.brokers.connection import fetch_all, fetch_one
from liteq.brokers.schema import FAILED, MOST, REVOKED, SUCCEEDED, WAITING
from liteq.exceptions import Ignore, InvalidTaskError, MessageTooLarge, TaskRevokedError
from liteq.message import GATHER

__all__ = ["IGNORED_KEPT", "End", "Following", "find_open_gather"]

MAX_LIST: Final = 500_000_000  # bytes; an SQLite value ends at twice that
IGNORED_KEPT: Final = 3600.0  # seconds an unwanted result's row stays, against repeats


# One that ended upstream is counted down as well: what it waited for may be redriven.
_OPEN: Final = "(state = 0 OR (state IN (7, 8) AND revoke = 'upstream'))"
# For one that ended, or for several at once, in the order in which they have ended: then with
# a table to look them up in, which for one alone would take longer than the look.
_EDGES: Final = "SELECT source, target, fires, position FROM edge WHERE source = ?"
_EDGES_OF: Final = (
    "SELECT source, target, fires, position "
    "FROM json_each(?) CROSS JOIN edge ON source = json_each.value"
)
NOTED: Final = "+"  # behind the address of who is to hear of notes as well
_TELL: Final = f"SELECT address FROM waiter WHERE message = ? AND address LIKE '%{NOTED}'"
_WAKE: Final = "DELETE FROM waiter WHERE message = ? RETURNING message, address"
_WAKE_OF: Final = (
    "DELETE FROM waiter WHERE message IN (SELECT value FROM json_each(?)) "
    "RETURNING message, address"
)
_REVOKE: Final = (
    "UPDATE message SET state = 8, result = NULL, settled_at = ?1, "
    "delete_at = ?1 + result_expires, revoke = ?2 "
    "WHERE seq = ?3 AND state < 6 AND state != 3 RETURNING id, task"
)
_END_UPSTREAM: Final = (
    "UPDATE message SET state = ?1, result = ?2, settled_at = ?3, "
    "delete_at = ?3 + result_expires, revoke = 'upstream' "
    "WHERE seq = ?4 AND state = 0 RETURNING id"
)
_INPUT: Final = (
    "INSERT INTO input(target, position, source, kind, value) "
    f"SELECT seq, ?2, ?3, ?4, ?5 FROM message WHERE seq = ?1 AND {_OPEN} "
    "ON CONFLICT DO NOTHING"
)
# A damaged envelope, or a count that nobody has counted, ends nothing but its own message.
_SAID: Final = "CASE WHEN json_valid({0}envelope) THEN json_extract({0}envelope, '$.{1}') END"
_MET: Final = "pending = max(pending, 0) - 1"
_GIVEN: Final = f"inputs = min(inputs, {MOST}) + 1"
# The right-hand sides see the row as it was, so the due time is worked out twice.
_DUE: Final = f"coalesce(?1 + {_SAID.format('', 'countdown')}, run_at)"
_STAYS: Final = "state != 0 OR pending > 1"
_GIVE: Final = (
    f"UPDATE message SET {_MET}, {_GIVEN}, "
    f"state = CASE WHEN {_STAYS} THEN state WHEN {_DUE} > ?1 THEN 2 ELSE 1 END, "
    f"run_at = CASE WHEN {_STAYS} THEN run_at ELSE {_DUE} END, "
    f"expires_at = CASE WHEN {_STAYS} THEN expires_at "
    f"ELSE coalesce(?1 + {_SAID.format('', 'expires_in')}, expires_at) END "
    "WHERE seq = ?2"
)
_TURN: Final = _GIVE.replace(f"{_GIVEN}, ", "")
_GATHER: Final = (
    "SELECT id, body, state, pending, ignore_result, result_expires FROM message "
    f"WHERE seq = ? AND {_OPEN}"
)
_ARE_SIBLINGS: Final = (
    "SELECT 1 FROM message AS a, message AS b WHERE a.seq = ? AND b.seq = ? "
    f"AND b.task != '{GATHER}' "
    f"AND {_SAID.format('a.', 'parent_id')} = {_SAID.format('b.', 'parent_id')}"
)
_PART: Final = "INSERT INTO input(target, position, source, kind, value) VALUES (?,?,?,?,?)"
_COUNT: Final = (
    "UPDATE message SET pending = max(pending, 0) - ?, "
    f"inputs = min(inputs, {MOST}) + ? WHERE seq = ?"
)
_LIST: Final = "SELECT kind, value FROM input WHERE target = ? ORDER BY position, source"
_SIZE: Final = "SELECT total(length(value)) FROM input WHERE target = ?"
_JOINED: Final = (
    "UPDATE message SET state = 6, result = ?, settled_at = ?, delete_at = ?, inputs = 0 "
    "WHERE seq = ?"
)

Kind = Literal["result", "error", "list"]


class End(NamedTuple):
    """A message that has ended, as it is handed on.

    `value` is the result, or the error record that stands for it. `tells`: its error
    callbacks are set off. `silent`: nothing failed, there is just no value. `wrapped`: the
    error is a gather's `ChordError`. `cause`: what ended it, of one that is `upstream`.
    """

    seq: int
    id: str
    state: int
    kind: Kind
    value: bytes
    upstream: bool = False
    gather: bool = False
    tells: bool = True
    silent: bool = False
    wrapped: bool = False
    cause: Any = None  # an End: what is text here would be compiled by who imports it


class Following:
    """What one transaction owes to those that wait, in the store and outside of it.

    `queued` says that messages became claimable, `freed` which of those had waited for
    others, `lined` that some are under limits (see `limiting`), `ended` which ids have ended,
    `woken` which are to be told to which mailboxes. They are acted upon after the commit.
    """

    def __init__(
        self,
        db: apsw.Connection,
        now: float,
        *,
        edges: bool | None = None,
        waiters: bool | None = None,
    ) -> None:
        self.db = db
        self.now = now
        self.queued = False
        self.freed: list[int] = []
        self.lined = False
        self.ended: list[str] = []
        self.woken: dict[str, list[str]] = {}
        self._ended: dict[int, End] = {}  # by number, in the order of their ends
        self._settled: dict[int, str] = {}  # whose waiters are to be told
        self._has_edges = edges
        self._has_waiters = waiters

    # What has ended

    def forget_freed(self, keys: Collection[int]) -> None:
        """Tell nobody of these, which were claimed by the step that made them claimable."""
        self.freed = [seq for seq in self.freed if seq not in keys]

    def succeeded(self, *ends: tuple[int, str, bytes]) -> None:
        """Note messages that have ended with these results, by their numbers and ids."""
        self.ended += [id for _, id, _ in ends]
        if self._anything_follows():
            for seq, id, value in ends:
                self._ended[seq] = End(seq, id, SUCCEEDED, "result", value)
        if self._anyone_waits():
            self._settled.update((seq, id) for seq, id, _ in ends)

    def failed(self, seq: int, id: str, error: bytes) -> None:
        self._note(End(seq, id, FAILED, "error", error))

    def revoked(self, seq: int, id: str, reason: str, *, gather: bool = False) -> None:
        self._note(End(seq, id, REVOKED, "error", revocation(reason), gather=gather))

    def ignored(self, seq: int, id: str) -> None:
        self._note(End(seq, id, REVOKED, "error", _ignorance(), tells=False, silent=True))

    def purged(self, seq: int, id: str) -> None:
        error = revocation("purged")
        self._note(End(seq, id, REVOKED, "error", error, tells=False, silent=True))

    def reported(self, seq: int, id: str) -> None:
        """Note whom to tell of what a running message says about itself."""
        for (address,) in fetch_all(self.db, _TELL, (seq,)):
            self.woken.setdefault(address.removesuffix(NOTED), []).append(id)

    def revoke(self, seq: int, reason: str) -> None:
        """End a message that is not running. To be followed by `follow_all()`."""
        row = fetch_one(self.db, _REVOKE, (self.now, reason, seq))
        if row is not None:
            id, task = row
            self.revoked(seq, id, reason, gather=task == GATHER)

    def mark(self) -> tuple[int, ...]:
        """Return how much is noted by now, for `back_to()`."""
        return len(self.ended), len(self._ended), len(self._settled)

    def back_to(self, mark: tuple[int, ...]) -> None:
        """Forget the ends noted since, which a savepoint has undone."""
        ended, edges, settled = mark
        del self.ended[ended:]
        for noted, before in ((self._ended, edges), (self._settled, settled)):
            for seq in list(noted)[before:]:
                del noted[seq]

    def join(self, seq: int) -> None:
        """End a gather that waits for nothing. To be followed by `follow_all()`."""
        self._gather(seq, ())

    def _note(self, end: End) -> None:
        self.ended.append(end.id)
        if self._anything_follows():
            self._ended[end.seq] = end
        if self._anyone_waits():
            self._settled[end.seq] = end.id

    def quiet(self) -> bool:
        """Tell whether an end concerns nobody: no edge in the store, and nobody waits."""
        return not self._anything_follows() and not self._anyone_waits()

    def _anything_follows(self) -> bool:
        """Tell whether the store holds any edge; most programs' stores never do."""
        if self._has_edges is None:
            self._has_edges = bool(fetch_one(self.db, "SELECT EXISTS(SELECT 1 FROM edge)"))
        return self._has_edges

    def edges_added(self) -> None:
        """Take notice of edges that were written in this transaction."""
        self._has_edges = True

    def _anyone_waits(self) -> bool:
        """Tell whether anybody waits for any result now."""
        if self._has_waiters is None:
            self._has_waiters = bool(fetch_one(self.db, "SELECT EXISTS(SELECT 1 FROM waiter)"))
        return self._has_waiters

    def _wake_waiters(self) -> None:
        """Note whom to tell of what has settled."""
        settled, self._settled = self._settled, {}
        for seq, address in self._of(settled, _WAKE, _WAKE_OF):
            self.woken.setdefault(address.removesuffix(NOTED), []).append(settled[seq])

    def _of(self, seqs: Collection[int], of_one: str, of_many: str) -> list[tuple[Any, ...]]:
        """Return the rows that a statement gives for one message, or for several."""
        if len(seqs) < 2:
            return fetch_all(self.db, of_one, tuple(seqs)) if seqs else []
        return fetch_all(self.db, of_many, (f"[{','.join(map(str, seqs))}]",))

    # What follows

    def follow_all(self) -> None:
        """Hand on these ends, and those that come of it. Round by round and not by
        recursion: a chain may have ten thousand links. The parts of a gather that end in
        one round are counted with one statement."""
        while self._ended:
            ends, self._ended = self._ended, {}
            gathers: dict[int, list[tuple[int, End]]] = {}
            for source, target, fires, position in self._of(ends, _EDGES, _EDGES_OF):
                end = ends[source]
                if fires == "part":
                    gathers.setdefault(target, []).append((position, end))
                elif fires == "success":
                    if end.state == SUCCEEDED:
                        self._give(target, position, end)
                    else:
                        self._end_upstream(target, end, tells=end.gather and not end.silent)
                elif fires == "failure":
                    if end.state != SUCCEEDED and end.tells:
                        self._give(target, position, end)
                    else:
                        self._end_upstream(target, _uncalled(end), tells=False)
                elif fires == "end":
                    self.db.execute(_TURN, (self.now, target))
                    self.freed.append(target)
            for gather, arrivals in gathers.items():
                self._gather(gather, arrivals)
        if self._settled:
            self._wake_waiters()

    def _give(self, target: int, position: int, end: End) -> None:
        self.db.execute(_INPUT, (target, position, end.id, end.kind, end.value))
        if self.db.changes():
            self.db.execute(_GIVE, (self.now, target))
            self.freed.append(target)

    def _end_upstream(self, target: int, end: End, *, tells: bool) -> None:
        """End what waits as what it waited for has ended."""
        result = end.value if end.state == FAILED else None
        id = fetch_one(self.db, _END_UPSTREAM, (end.state, result, self.now, target))
        if id is not None:
            self._note(_upstream(end, target, id, tells=tells))

    def _gather(self, seq: int, arrivals: Sequence[tuple[int, End]]) -> None:
        """Count the parts of a gather that have ended; end it if it is to end."""
        row = fetch_one(self.db, _GATHER, (seq,))
        if row is None:
            return  # over, whatever its parts do
        id, policy, state, pending, ignore_result, expires = row
        bad = [end for _, end in arrivals if end.state != SUCCEEDED]
        met = len(arrivals) - (len(bad) if policy == b"fail" else 0)
        given = [
            (seq, position, end.id, end.kind, end.value)
            for position, end in arrivals
            if policy == b"collect" or (end.state == SUCCEEDED and policy != b"count")
        ]
        self.db.executemany(_PART, given)
        if met:
            self.db.execute(_COUNT, (met, len(given), seq))
        if state != WAITING:
            return
        if bad and policy == b"fail":
            self._fail_gather(seq, bad[0])
        elif pending == met:
            self._join(seq, id, policy, expires, ignore_result=ignore_result)

    def _fail_gather(self, seq: int, part: End) -> None:
        """End a gather as a part of it has failed; or as all of it ends if what its members
        stand behind has: that is no error of theirs, and has called its own callbacks."""
        inside = not self._is_from_before(seq, part)
        if inside and not part.wrapped and not part.silent:
            error = failure.chord_error(part.id, part.value)
            part = part._replace(state=FAILED, value=error, wrapped=True)
        result = part.value if part.state == FAILED else None
        id = fetch_one(self.db, _END_UPSTREAM, (part.state, result, self.now, seq))
        tells = inside and not part.silent
        self._note(_upstream(part, seq, id, tells=tells)._replace(gather=inside))

    def _is_from_before(self, seq: int, part: End) -> bool:
        """Tell whether the first call of a member has not run either: its parent is that of
        the gather. (A gather among the members may have that one too, however it ended.)"""
        end: End | None = part
        while end is not None and end.upstream:
            if fetch_one(self.db, _ARE_SIBLINGS, (seq, end.seq)):
                return True
            end = end.cause
        return False

    def _join(
        self, seq: int, id: str, policy: bytes, expires: float | None, *, ignore_result: bool
    ) -> None:
        size = fetch_one(self.db, _SIZE, (seq,))
        if size > MAX_LIST:
            self._refuse_list(seq, id, size)
            return
        value = parts.pack(fetch_all(self.db, _LIST, (seq,)))
        self.db.execute("DELETE FROM input WHERE target = ?", (seq,))
        result = None if ignore_result or policy == b"count" else value
        if ignore_result:
            expires = IGNORED_KEPT if expires is None else min(expires, IGNORED_KEPT)
        delete_at = None if expires is None else self.now + expires
        self.db.execute(_JOINED, (result, self.now, delete_at, seq))
        self._note(End(seq, id, SUCCEEDED, "list", value, gather=True))

    def _refuse_list(self, seq: int, id: str, size: float) -> None:
        """Fail a gather whose list no row can hold: SQLite would refuse the whole step,
        again at each attempt, and with it all that was settled beside the last part."""
        error = failure.describe(
            MessageTooLarge(
                f"the results of a group are {size:,.0f} bytes together, and {MAX_LIST:,} is "
                "the limit: store them elsewhere and return where"
            )
        )
        self.db.execute(_END_UPSTREAM, (FAILED, error, self.now, seq))
        self._note(End(seq, id, FAILED, "error", error, upstream=True, gather=True))


def find_open_gather(db: apsw.Connection, id: str) -> int | None:
    """Return the number of a gather, None if it is over or not there any more.

    Raises `InvalidTaskError` if the message is no gather.
    """
    row = fetch_one(db, f"SELECT seq, task, {_OPEN} FROM message WHERE id = ?", (id,))
    if row is None:
        return None
    seq, task, is_open = row
    if task != GATHER:
        raise InvalidTaskError(f"{id!r} takes no parts: it is not a gather but {task!r}")
    return seq if is_open else None


@cache
def revocation(reason: str) -> bytes:
    """Return the error that stands for a message revoked for this reason."""
    return failure.describe(TaskRevokedError(reason))


@cache
def _ignorance() -> bytes:
    return failure.describe(Ignore("the task raised Ignore: it has no result"))


def _upstream(end: End, seq: int, id: str, *, tells: bool) -> End:
    """Return the end of a message that comes of another's."""
    return end._replace(seq=seq, id=id, upstream=True, gather=False, tells=tells, cause=end)


def _uncalled(end: End) -> End:
    """Return the end of an error callback that is not needed any more."""
    return end._replace(
        state=REVOKED, kind="error", value=revocation("upstream"), silent=True, tells=False
    )
