"""Every example runs, and prints what its docstring says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
DEMO = EXAMPLES / "stdlib_census.py"
SINGLE = sorted(set(EXAMPLES.glob("*.py")) - {DEMO})

pytestmark = pytest.mark.process


@pytest.mark.parametrize("example", SINGLE, ids=lambda path: path.stem)
def test_an_example_prints_what_its_docstring_says(example: Path, tmp_path: Path) -> None:
    printed = run(example, tmp_path)
    assert printed.stdout == promised(example), printed.stderr
    assert printed.returncode == 0


@pytest.mark.parametrize("example", SINGLE, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert f"Run:  python examples/{example.name}\n" in text
    assert len(text.splitlines()) <= 75


def test_an_entry_that_an_example_paused_fires_at_its_next_run(tmp_path: Path) -> None:
    for _ in range(2):
        printed = run(EXAMPLES / "periodic.py", tmp_path)
        assert printed.stdout == promised(EXAMPLES / "periodic.py"), printed.stderr


def test_the_demo_proves_that_nothing_was_lost_or_counted_twice(tmp_path: Path) -> None:
    # So many that a process is in the middle of one when it is looked for, and looked at again
    printed = run(DEMO, tmp_path, "--modules", "120", "-c", "2")
    said = printed.stdout + printed.stderr
    assert printed.returncode == 0, said
    assert "with SIGKILL while it parsed" in said
    assert re.search(r"attempt 1: lost, .*signal 9", said)
    assert re.search(r"✓ delivered again +1 ", said)
    assert "Nothing was lost, and nothing was counted twice." in said
    assert "100%" in said
    assert "\x1b" not in said, "colours in a pipe"
    assert "\r" not in said, "a live line in a pipe"


def run(example: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an example with a store of its own."""
    environ = {
        **os.environ,
        "LITEQ_BROKER_URL": f"sqlite://{folder}/example.liteq",
        "PYTHONIOENCODING": "utf-8",
    }
    return subprocess.run(
        [sys.executable, str(example), *words],
        cwd=folder,
        env=environ,
        capture_output=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )


def promised(example: Path) -> str:
    """Return the "Prints:" block of an example's docstring."""
    docstring = ast.get_docstring(ast.parse(example.read_bytes()))
    assert docstring is not None
    _, found, block = docstring.partition("Prints:\n")
    assert found, f"{example.name} does not say what it prints"
    return textwrap.dedent(block).rstrip() + "\n"
