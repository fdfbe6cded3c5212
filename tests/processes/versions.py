"""Other versions of liteq, as source trees of their own.

The versions after this one are made of it, by the kind of change that they may bring: a new
column, table and index, a raised schema version, a new field in the envelope and in what
Redis keeps of a message, a new option of a call. The version before comes out of the
history, where there is one.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from liteq.brokers import schema
from liteq.brokers.redis_link import KEYS_VERSION

ROOT: Final = Path(__file__).parents[2]
# The last commit whose schema has version 2; the present one has 3.
BEFORE: Final = "092ef4b"


def earlier(folder: Path) -> Path | None:
    """Return the tree of the version before; None if there is no history to take it from."""
    command = ["git", "-C", str(ROOT), "archive", BEFORE, "liteq"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    if done.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def later(folder: Path, steps: int, *, breaks: bool = False) -> Path:
    """Return the tree of the version that comes so many after this one. If it `breaks`,
    the versions before must not use a store any more that it has upgraded."""
    shutil.copytree(ROOT / "liteq", folder / "liteq")
    for step in range(1, steps + 1):
        _add(folder / "liteq", step)
    brokers = folder / "liteq" / "brokers"
    newest = schema.VERSION + steps
    _edit(
        brokers / "schema.py",
        f"VERSION: Final = {schema.VERSION}",
        f"VERSION: Final = {newest}",
    )
    if breaks:
        fence = f"UPDATE meta SET value = {newest} WHERE name = 'readable_by';\n"
        _edit(brokers / "schema.py", '""",\n}\n', f'{fence}""",\n}}\n')
        version = "KEYS_VERSION: Final = "
        _edit(
            brokers / "redis_link.py",
            f"{version}{KEYS_VERSION}",
            f"{version}{KEYS_VERSION + 1}",
        )
    return folder


def _add(tree: Path, step: int) -> None:
    name = f"later{step}"
    migration = f'''    {schema.VERSION + step - 1}: """
ALTER TABLE message ADD COLUMN {name} TEXT;
CREATE TABLE {name}(name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
CREATE INDEX message_{name} ON message(task, state, seq);
'''
    _edit(tree / "brokers" / "schema.py", '""",\n}\n', f'""",\n{migration}""",\n}}\n')
    field = "    keywords: tuple[str | None, ...] | None = None  # by input"
    _edit(tree / "message.py", field, f"    {name}: Any = None\n{field}")
    call = "        if without := options.keys() & WITHOUT_EFFECT.keys():\n"
    taken = f'        changed["{name}"] = options.pop("{name}", None)\n'
    _edit(tree / "sending.py", call, f"        options = dict(options)\n{taken}{call}")
    lone = tree / "brokers" / "lua" / "enqueue_one.lua"
    _edit(lone, "'Q', now)", f"'{name}', '1', 'Q', now)")


def _edit(path: Path, old: str, new: str) -> None:
    """Replace what must stand there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} has {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")
