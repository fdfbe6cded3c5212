from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
ROOT = HERE.parent.parent

EXPECTED = {
    ("bad.py", number)
    for number, line in enumerate((HERE / "bad.py").read_text().splitlines(), 1)
    if line.endswith("# error")
}


def mypy(cache: Path) -> set[tuple[str, int]]:
    pytest.importorskip("mypy")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--output=json",
        f"--cache-dir={cache}",
    ]
    done = subprocess.run(
        [*command, str(HERE / "good.py"), str(HERE / "bad.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {
        (Path(report["file"]).name, report["line"])
        for report in reports
        if report["severity"] == "error"
    }


def pyright() -> set[tuple[str, int]]:
    pytest.importorskip("pyright")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, str(HERE / "good.py"), str(HERE / "bad.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    reports = json.loads(done.stdout)["generalDiagnostics"]
    return {
        (Path(report["file"]).name, report["range"]["start"]["line"] + 1)
        for report in reports
        if report["severity"] == "error"
    }


@pytest.mark.timeout(300)
def test_mypy_infers_the_types_and_reports_every_mistake() -> None:
    assert mypy(ROOT / ".mypy_cache") == EXPECTED


@pytest.mark.timeout(300)
def test_pyright_infers_the_types_and_reports_every_mistake() -> None:
    assert pyright() == EXPECTED
