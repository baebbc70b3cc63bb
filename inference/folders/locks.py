"""The lock of a run folder, so that one process at a time writes into it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from inference.folders.checkpoints import RunError, explain_full_disk, write_atomically
from inference.folders.records import now
from pyro_mdm.support.files import read_json

LOCK, WRITER = ".lock", ".writer.json"


class WriteLock:
    """The right to write into a run folder.

    It ends when it is released or collected, or with its process. The file ``.lock`` stays and
    means nothing by itself.

    Raises:
        RunError: another run object holds it, in this process or another, or its files are links.
    """

    def __init__(self, folder: Path) -> None:
        refuse_links([folder / LOCK, folder / WRITER])  # older filelocks empty what one leads to
        lock = folder / LOCK
        if lock.exists() and lock.stat().st_nlink > 1 and lock.stat().st_size:
            raise RunError(
                f"{lock} is not an empty file, as locks are, and it has several names (hard "
                "links); remove it"
            )
        self._writer, self._pid = folder / WRITER, os.getpid()
        self._lock = FileLock(str(folder / LOCK), timeout=0, thread_local=False)
        try:
            with explain_full_disk(folder / LOCK, 0):
                self._lock.acquire()
        except Timeout:
            raise RunError(
                f"{folder} is being written by {_read_writer(self._writer)}; wait until it ends or "
                "stop it, or give another --run"
            ) from None
        me = {"pid": self._pid, "host": platform.node(), "since": now(), "command": sys.argv}
        try:
            write_atomically(self._writer, json.dumps(me, indent=1).encode())
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        if self._lock.is_locked and self._pid == os.getpid():  # not in a fork of the process
            with contextlib.suppress(OSError):
                self._writer.unlink(missing_ok=True)
            self._lock.release()


def is_written(run: Path) -> bool:
    """Whether another process is writing into a run folder."""
    if not (run / LOCK).exists():
        return False
    lock = FileLock(str(run / LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def _read_writer(path: Path) -> str:
    """The process that holds the lock, as far as it is known."""
    try:
        writer = read_json(path)
        mine = (writer["pid"], writer["host"]) == (os.getpid(), platform.node())
        who = "this process" if mine else f"process {writer['pid']} on {writer['host']}"
        return f"{who} since {writer['since']} ({' '.join(writer['command'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def refuse_links(paths: Iterable[Path]) -> None:
    """Raise RunError for links, through which a foreign run folder could overwrite other files."""
    for path in paths:
        if path.is_symlink():
            raise RunError(
                f"{path} is a link to {os.readlink(path)}, where the run would write; put what it "
                "leads to in its place"
            )
