"""Write files and directories so that a reader sees the old content or the new one, never half of it.

Interrupted downloads, conversions and benchmarks are normal on a laptop; a truncated weights file that looks
finished costs an afternoon. Everything here is written under a temporary name beside its target, flushed to the
disk, then renamed: on one file system a rename is all or nothing (POSIX `rename`).

    python -m pytest tests/shared/test_files.py     # kills writers with SIGKILL and looks at what is left

What a kill -9 leaves behind: the target as it was, and one hidden sibling `.NAME.xxxxxxxx.tmp`. The next write to
the same target removes it. A living writer's temporary is never touched: its owner holds a kernel lock (flock) on
it, which the kernel drops at death. Where flock is missing (Windows, some network file systems) leftovers stay.
"""

import contextlib
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl


_OWN_DIRECTORIES: set[Path] = set()  # temporary directories this process is filling right now


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Try to lock an open file or directory; False when another process holds it or the file system cannot lock."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # BlockingIOError: somebody lives there. Others: no locks here, so nothing is ever called stale.
        return False
    return True


def _remove(path: Path) -> None:
    """Delete a file or a directory tree, whichever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_stale(target: Path) -> None:
    """Delete the temporaries of dead writers to `target`. The caller holds the lock on the parent directory."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):  # gone already, or not ours to open
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                if _lock(descriptor, wait=False):
                    _remove(leftover)
            finally:
                os.close(descriptor)


def _fsync(path: Path) -> None:
    """Wait until the disk holds this file or directory entry: a rename alone survives a kill, not a power cut."""
    if sys.platform == "win32":  # directories cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary(target: Path, *, directory: bool) -> Iterator[Path]:
    """Yield a new, locked, empty temporary beside `target`; delete it at the end unless it was renamed away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    held = None
    # Creating and locking are two calls. The parent's lock closes the gap, in which a neighbour's clean-up would take
    # the new temporary for a dead writer's.
    # A temporary directory of our own needs no such care, and its lock is already taken: waiting for it would hang.
    shared_parent = sys.platform != "win32" and target.parent not in _OWN_DIRECTORIES
    parent = os.open(target.parent, os.O_RDONLY) if shared_parent else None
    try:
        if parent is not None:
            _lock(parent, wait=True)
            _remove_stale(target)
        if directory:
            path.mkdir()
        else:
            path.touch(exist_ok=False)  # not mkstemp, whose 0600 would make a README unreadable for others
        if sys.platform != "win32":
            held = os.open(path, os.O_RDONLY)
            _lock(held, wait=False)
    finally:
        if parent is not None:
            os.close(parent)
    if directory:
        _OWN_DIRECTORIES.add(path)
    try:
        yield path
    finally:
        _OWN_DIRECTORIES.discard(path)
        if path.exists():
            _remove(path)
        if held is not None:
            os.close(held)


def atomic_write(path: Path | str, data: str | bytes) -> None:
    """Replace the file at `path` (or create it, and its parent directories) in one step.

    data: str is written as UTF-8 with its line ends untouched. An existing file's mode is kept, a symbolic link is
    followed. Two writers at once: the last rename wins, both contents are whole.
    Raises OSError as `open` does (no permission, disk full); the old file is then unchanged.
    """
    target = Path(os.path.realpath(path))
    with _temporary(target, directory=False) as temporary:
        with temporary.open("wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    _fsync(target.parent)


@contextlib.contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary directory; when the block succeeds it becomes `path`, else it is deleted.

        with atomic_directory(home / "smollm2-135m") as folder:
            save_file(tensors, folder / "model.safetensors")

    `path` must not exist yet or be empty (FileExistsError, before any work): a directory cannot be swapped for a full
    one in a single step, so whoever wants to replace it deletes it first. So at any moment `path` is absent or
    complete, and a complete one never changes under a reader. When two processes make the same directory, the first
    to finish wins and the second one's work is dropped: right for caches, where both made the same thing.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} exists and is not empty; delete it to make it again")
    with _temporary(target, directory=True) as temporary:
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            if not entry.is_symlink():
                _fsync(entry)
        try:
            os.rename(temporary, target)
        except OSError:
            if not (target.is_dir() and any(target.iterdir())):  # not a lost race: a real failure
                raise
    _fsync(target.parent)
