"""Disks of a test's own: read-only, or full, for the commands that it starts and for nobody
else. Only root can mount, and not in every container."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["Disk", "own_disk"]

_MOUNT = 'mount -t tmpfs -o size=96m,nr_inodes=200 none "$0"'


class Disk:
    """A small file system at `folder`, which is there in `behind` alone: what a command is to
    be run behind. It ends with the process that holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"{_MOUNT} && echo && exec cat", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        mounted = self._holder.stdout.readline()
        self.behind = ["nsenter", "-m", "-t", str(self._holder.pid), f"--wd={folder.parent}"]
        if not mounted:
            self.close()
            pytest.skip("this user may not mount a file system")

    def remount(self, how: str) -> None:
        """Mount it "ro" or "rw"."""
        self._run(f'mount -o remount,bind,{how} "$0"')

    def fill(self) -> None:
        """Leave no room for one more file."""
        self._run('i=0; while touch "$0/$i" 2>/dev/null; do i=$((i+1)); done')

    def leave(self, size: int) -> None:
        """Leave room for so many MiB."""
        free = int(self._run('df -m --output=avail "$0" | tail -1'))
        self._run(f'head -c {free - size}M /dev/zero > "$0/large"')

    def free(self) -> None:
        """Make room again."""
        self._run('find "$0" -maxdepth 1 -type f -delete')

    def close(self) -> None:
        self._holder.communicate()

    def _run(self, words: str) -> str:
        return subprocess.check_output(
            [*self.behind, "sh", "-c", words, str(self.folder)], text=True
        )


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Disk]:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("only Linux has file systems for a few processes alone")
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.close()
