"""shared/files.py under SIGKILL, races and failures: a reader sees old or new, never half.

python -m pytest tests/shared/test_files.py
"""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.files import atomic_directory, atomic_write

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and flock")

WRITER = """
import itertools, sys
from shared.files import atomic_write
for i in itertools.count():
    atomic_write(sys.argv[1], "ab"[i % 2] * 2_000_000)
    if i == 0: print("ready", flush=True)
"""
MAKER = """
import itertools, sys
from pathlib import Path
from shared.files import atomic_directory
print("ready", flush=True)
for i in itertools.count():
    with atomic_directory(Path(sys.argv[1]) / str(i)) as folder:
        for name in "abc":
            (folder / name).write_bytes(name.encode() * 300_000)
"""
HOLDER = """
import sys, time
from shared.files import atomic_directory
with atomic_directory(sys.argv[1]) as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def start(program: str, target: Path) -> subprocess.Popen[bytes]:
    """Start a writer process and wait for its first sign of life."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def temporaries(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.tmp"))


@posix
def test_killed_writer_leaves_old_or_new_content(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    whole = (b"a" * 2_000_000, b"b" * 2_000_000)
    leftovers = 0
    for attempt in range(12):
        process = start(WRITER, target)
        deadline = time.monotonic() + 0.005 * attempt  # a different moment of the write each time
        while time.monotonic() < deadline:
            assert target.read_bytes() in whole  # a reader beside a living writer
        kill(process)
        assert target.read_bytes() in whole  # and after its death
        leftovers += bool(temporaries(tmp_path))
    assert leftovers > 0, "no kill landed inside a write, so this test showed nothing"
    atomic_write(target, "done")
    assert target.read_text() == "done"
    assert temporaries(tmp_path) == []


@posix
def test_killed_maker_leaves_complete_directories_or_none(tmp_path: Path) -> None:
    complete, leftovers = 0, []
    for attempt in range(8):
        home = tmp_path / str(attempt)
        home.mkdir()
        process = start(MAKER, home)
        time.sleep(0.02 + 0.004 * attempt)
        kill(process)
        leftovers += temporaries(home)
        for folder in home.glob("[0-9]*"):
            assert sorted(file.name for file in folder.iterdir()) == ["a", "b", "c"]
            assert all(file.read_bytes() == file.name.encode() * 300_000 for file in folder.iterdir())
            complete += 1
    assert complete > 0
    assert leftovers, "no kill landed inside a block, so this test showed nothing"
    target = leftovers[0].parent / leftovers[0].name.split(".")[1]
    with atomic_directory(target) as folder:
        (folder / "a").write_text("a")
    assert temporaries(target.parent) == []


@posix
def test_stale_siblings_go_and_living_ones_stay(tmp_path: Path) -> None:
    target = tmp_path / "model"
    dead, living = start(HOLDER, target), start(HOLDER, target)
    assert len(temporaries(tmp_path)) == 2
    kill(dead)
    with atomic_directory(target) as folder:
        (folder / "whole").write_text("whole")
        assert len(temporaries(tmp_path)) == 2  # ours and the living one's
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert len(temporaries(tmp_path)) == 1
    kill(living)
    atomic_write(target.with_name("other"), "")  # another target's clean-up does not reach for it
    assert len(temporaries(tmp_path)) == 1


def test_racing_makers_first_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_directory(target) as slow:
        (slow / "slow").write_text("")
        with atomic_directory(target) as fast:
            (fast / "fast").write_text("")
    assert [path.name for path in target.iterdir()] == ["fast"]
    assert temporaries(tmp_path) == []


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail_halfway() -> None:
        with atomic_directory(tmp_path / "model") as folder:
            (folder / "half").write_text("half")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []


def test_existing_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"), atomic_directory(tmp_path / "full"):
        pytest.fail("the block must not run: its work would be thrown away")
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "empty" / "a").read_text() == "a"


def test_write_creates_parents_and_keeps_bytes(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "x.txt"
    atomic_write(str(target), "é\r\nü\n")
    assert target.read_bytes() == "é\r\nü\n".encode()
    atomic_write(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert [path.name for path in target.parent.iterdir()] == ["x.txt"]


@posix
def test_write_keeps_mode_and_follows_links(tmp_path: Path) -> None:
    script, link = tmp_path / "run", tmp_path / "link"
    old_mask = os.umask(0o022)
    try:
        atomic_write(script, "one")
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(script.stat().st_mode) == 0o644
    script.chmod(0o750)
    link.symlink_to(script)
    atomic_write(link, "two")
    assert link.is_symlink()
    assert script.read_text() == "two"
    assert stat.S_IMODE(script.stat().st_mode) == 0o750


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x"
    atomic_write(target, "old")

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="space"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert temporaries(tmp_path) == []


def test_atomic_write_inside_atomic_directory_does_not_wait_for_itself(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "outer") as folder:
        atomic_write(folder / "inner.txt", "here")
        atomic_write(folder / "sub" / "inner.txt", "there")
    assert (tmp_path / "outer" / "inner.txt").read_text() == "here"
    assert (tmp_path / "outer" / "sub" / "inner.txt").read_text() == "there"
