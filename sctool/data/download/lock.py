"""One process at a time for one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sctool.artifacts.atomic import disk_errors


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold ``PATH.lock``; a second process calls ``waiting`` once and then waits. The kernel releases it however the holder ends."""
    import fcntl

    lock = path.with_name(f"{path.name}.lock")
    with disk_errors(path, "--dest"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_CREAT | os.O_RDWR)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError:
                break  # a network disk without locks: better to go on than to refuse
            # The holder before us removed the file on leaving: ours is then a lock on nothing, and another may have made a new one.
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                break
            os.close(handle)
            handle = os.open(lock, os.O_CREAT | os.O_RDWR)
        yield
    finally:
        with suppress(FileNotFoundError):
            lock.unlink()
        os.close(handle)
