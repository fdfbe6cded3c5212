"""The values that a run has brought, to be kept in a file and shown at any time."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.measures import ROWS, Scale, Values
from benchmarks.servers import bin_of
from benchmarks.systems import SYSTEMS, System

__all__ = ["Results"]


class Results:
    """All values of all rounds, and how loaded the machine was by others meanwhile."""

    def __init__(self, systems: Sequence[System], scale: Scale) -> None:
        self.systems = systems
        self.scale = scale
        self.place = ""
        self.versions: dict[str, str] = {}
        self.seconds = 0.0
        self.values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.loads: dict[str, list[float]] = defaultdict(list)
        self.failures: list[str] = []
        self.depths: dict[str, dict[int, list[float]]] = {}
        self.histories: dict[int, list[float]] = {}
        self.waiting: dict[int, float] = {}

    @classmethod
    def new(cls, systems: Sequence[System], scale: Scale) -> Results:
        """Return results of today, on this machine, of these versions."""
        results = cls(systems, scale)
        day, python = time.strftime("%Y-%m-%d"), platform.python_version()
        results.place = f"{day}, Python {python}, {os.cpu_count()} CPUs"
        results.versions = {system.name: _version(system) for system in systems}
        return results

    def add(self, system: System, values: Values) -> None:
        for row, value in values.items():
            self.values[row][system.name].append(value)

    def note_load(self, rows: Iterable[str], load: float) -> None:
        """Say how many CPUs others kept busy while these rows were measured."""
        for row in rows:
            self.loads[row].append(load)

    def failed(self, system: System, what: str, why: str) -> None:
        self.failures.append(f"{system.title}, {what}: {why.strip()}")

    def median(self, row: str, system: str) -> float | None:
        found = self.values[row].get(system) if row in self.values else None
        return statistics.median(found) if found else None

    @property
    def rows(self) -> list[str]:
        return [row for row in ROWS if row in self.values]

    def save(self, path: Path) -> None:
        kept = vars(self) | {"systems": [system.name for system in self.systems]}
        path.write_text(json.dumps(kept | {"scale": self.scale._asdict()}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        kept = json.loads(path.read_text())
        systems = [SYSTEMS[name] for name in kept.pop("systems")]
        scale = kept.pop("scale")
        results = cls(systems, Scale(**scale | {"depths": tuple(scale["depths"])}))
        vars(results).update(kept)
        for name in ("histories", "waiting"):
            setattr(results, name, {int(k): v for k, v in kept[name].items()})
        results.depths = {
            title: {int(k): v for k, v in found.items()}
            for title, found in kept["depths"].items()
        }
        return results


def _version(system: System) -> str:
    if not system.requires:
        return version("liteq-queue")
    name = system.requires[0].partition(">")[0].partition("[")[0]
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run(
        [str(bin_of(system) / "python"), "-c", code], check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode().strip()
