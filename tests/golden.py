"""What a version of liteq leaves in a store, frozen: it is run by all that come after it.

`PYTHONPATH=<that version's tree>:tests python -m golden URL FILE` writes such a file. It is
written once for each version of the schema and never again: when a change can't read it,
it is the change that is wrong.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import apsw

from liteq import Liteq
from liteq.canvas import chain, chord, group

FOLDER: Final = Path(__file__).parent / "golden_stores"
NAMESPACE: Final = "golden"

# How each call ends, by its id.
EXPECTED: Final[dict[str, Any]] = {
    "golden-plain": 3,
    "golden-values": "(datetime.datetime(2026, 3, 29, 2, 30, tzinfo=datetime.timezone.utc), "
    "Decimal('1.10'), (1, 2), {3}, b'\\x00')",
    "golden-headers": {"a": 1},
    "golden-late": 7,
    "golden-priority": 9,
    "golden-chain-1": 3,
    "golden-chain-2": 13,
    "golden-header-1": 1,
    "golden-header-2": 2,
    "golden-body": [1, 2],
    "golden-member-1": 3,
    "golden-member-2": 5,
    "golden-last": [3, 5],
    "golden-failed": ValueError,
    "golden-alarm": "called",
}


def declare(app: Liteq) -> None:
    """Add the tasks that the calls are of."""

    @app.task(name="shop.add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="shop.echo")
    def echo(*args: Any) -> str:
        return repr(args)

    @app.task(name="shop.headers", bind=True)
    def headers(self: Any) -> Any:
        return self.request.headers

    @app.task(name="shop.collect")
    def collect(values: list[Any]) -> list[Any]:
        return values

    @app.task(name="shop.fail")
    def fail() -> None:
        raise ValueError("no")

    @app.task(name="shop.alarm")
    def alarm() -> str:
        return "called"


def send(app: Liteq) -> None:
    """Send the calls."""

    def sign(name: str, id: str, *args: Any, immutable: bool = True, **options: Any) -> Any:
        options["task_id"] = f"golden-{id}"
        return app.signature(f"shop.{name}", args, immutable=immutable, options=options)

    noon = dt.datetime(2026, 3, 29, 2, 30, tzinfo=dt.UTC)
    sign("add", "plain", 1, 2).delay()
    sign("echo", "values", noon, Decimal("1.10"), (1, 2), {3}, b"\0").delay()
    sign("headers", "headers", headers={"a": 1}, shadow="another name").delay()
    sign("add", "late", 3, 4, eta=dt.datetime(2024, 1, 1, tzinfo=dt.UTC)).delay()
    sign("add", "priority", 4, 5, priority=9).delay()
    chain(sign("add", "chain-1", 1, 2), sign("add", "chain-2", 10, immutable=False)).delay()
    chord(
        [sign("add", "header-1", 0, 1), sign("add", "header-2", 1, 1)],
        sign("collect", "body", immutable=False),
    ).delay()
    members = group(sign("add", "member-1", 1, 2), sign("add", "member-2", 2, 3))
    chain(members, sign("collect", "last", immutable=False)).delay()
    failed = sign("fail", "failed")
    failed.link_error(sign("alarm", "alarm"))
    failed.delay()


def freeze(path: Path) -> dict[str, Any]:
    """Return all that is in an SQLite store."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    schema = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    parts = schema.fetchall()
    names = [name for kind, name, _ in parts if kind == "table" and name != "sqlite_sequence"]
    rows = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    kept = {
        name: [[_text(value) for value in row] for row in rows[name]]
        for name in names
        if name != "worker" and rows[name]
    }
    pragmas = {name: db.pragma(name) for name in ("user_version", "application_id")}
    sql = [text for _, name, text in parts if name != "sqlite_sequence"]
    return {"pragmas": pragmas, "schema": sql, "rows": kept}


def thaw(frozen: dict[str, Any], path: Path) -> None:
    """Make the store again."""
    db = apsw.Connection(str(path))
    for statement in frozen["schema"]:
        db.execute(statement)
    for name, rows in frozen["rows"].items():
        marks = ", ".join("?" * len(rows[0]))
        for row in rows:
            db.execute(f"INSERT INTO {name} VALUES ({marks})", [_value(one) for one in row])
    for name, value in frozen["pragmas"].items():
        db.pragma(name, value)
    db.close()


_READ: Final = {
    "string": ("GET", ()),
    "hash": ("HGETALL", ()),
    "set": ("SMEMBERS", ()),
    "zset": ("ZRANGE", ("0", "-1", "WITHSCORES")),
    "list": ("LRANGE", ("0", "-1")),
}
_WRITE: Final = {"string": "SET", "hash": "HSET", "set": "SADD", "list": "RPUSH"}


def freeze_redis(client: Any) -> dict[str, Any]:
    """Return all that is in a Redis store, by key: its type and what it holds."""
    found = {}
    for key in sorted(client.execute_command("KEYS", f"{{liteq:{NAMESPACE}}}*")):
        kind = client.execute_command("TYPE", key).decode()
        verb, more = _READ[kind]
        held = client.execute_command(verb, key, *more, NEVER_DECODE=True)
        found[key.decode("latin-1")] = [kind, _flat(held)]
    return found


def thaw_redis(frozen: dict[str, Any], say: Any) -> None:
    """Make the store again. `say` sends one command."""
    for key, (kind, held) in frozen.items():
        values = [one.encode("latin-1") for one in held]
        if kind == "zset":  # as it was answered: member, score
            pairs = zip(values[1::2], values[::2], strict=True)
            say("ZADD", key, *(part for pair in pairs for part in pair))
        else:
            say(_WRITE[kind], key, *values)


def _flat(held: Any) -> list[str]:
    match held:
        case dict():
            return [part for pair in held.items() for one in pair for part in _flat(one)]
        case list() | tuple() | set():
            return [part for one in held for part in _flat(one)]
        case bytes():
            return [held.decode("latin-1")]
        case _:
            return [str(held)]


def _text(value: Any) -> Any:
    return {"bytes": value.decode("latin-1")} if isinstance(value, bytes) else value


def _value(value: Any) -> Any:
    return value["bytes"].encode("latin-1") if isinstance(value, dict) else value


def main(url: str, file: str) -> None:
    options = {} if url.startswith("sqlite") else {"namespace": NAMESPACE}
    app = Liteq("shop", broker=url, broker_transport_options=options)
    declare(app)
    send(app)
    if url.startswith("sqlite"):
        frozen = freeze(Path(url.removeprefix("sqlite:///")) / "store.db")
    else:
        import redis

        frozen = freeze_redis(redis.Redis.from_url(url))
    Path(file).write_text(json.dumps(frozen, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
