"""The gateway alone over an engine that computes nothing: a small run gives every figure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.results import read_results
from step5_serving.overhead import cpu_seconds, resident_bytes


def run(*more: str) -> "subprocess.CompletedProcess[str]":
    arguments = [sys.executable, "-m", "step5_serving.overhead", *more]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60)


def test_a_small_run_gives_every_figure(tmp_path: Path) -> None:
    output = tmp_path / "overhead.json"
    small = ("--seconds", "0.3", "--connections", "4", "--pairs", "10", "--streams", "30", "--hold", "2")
    done = run(*small, "--output", str(output), "--json")
    assert done.returncode == 0, done.stderr
    rows = read_results(output)["rows"]
    assert json.loads(done.stdout)["rows"] == rows
    alone, streams = ({name: entry["value"] for name, entry in row["metrics"].items()} for row in rows)
    assert alone["requests/s"] > 20
    assert -5 < alone["added p50"] <= alone["added p99"]
    assert streams["not answered"] == 0
    if sys.platform == "linux":
        assert 0 < alone["cores used"] < 1.5  # one event loop, and threads that write
        assert alone["requests per CPU second"] > 20
        assert 20 < streams["RSS idle"] < streams["RSS last quarter"] * 1.2 < 500


def test_a_python_that_is_not_there_is_refused() -> None:
    done = run("--litellm", "/nowhere/python")
    assert done.returncode == 2
    assert "no such program" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_proc_is_read_right() -> None:
    times = os.times()
    found = cpu_seconds(os.getpid())
    assert found is not None
    assert abs(found - (times.user + times.system)) < 0.5
    block = bytearray(os.urandom(50_000_000))
    held = resident_bytes(os.getpid())
    assert held is not None
    assert held > len(block)
    assert cpu_seconds(2**30) is None
