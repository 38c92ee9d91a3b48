"""The benchmark over a fake engine of known delays: figures, results file, Ctrl-C, one JSON document."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually
from fake_engine import MODEL, Fake, fake_engine

from shared.errors import UserError
from shared.results import read_results
from step5_serving import bench, cli_bench
from step5_serving.bench import Plan, Probe, Prompts, check_targets, read_prompts
from step5_serving.bench_targets import process
from step5_serving.load import Sample, Target
from step5_serving.load_report import summarise

BEFORE, PER_TOKEN, TOKENS = 0.06, 0.02, 6
ONE = BEFORE + TOKENS * PER_TOKEN  # seconds of an answer


@pytest.fixture
def slow() -> Iterator[Fake]:
    with fake_engine(seconds_before=BEFORE, seconds_per_token=PER_TOKEN) as engine:
        yield engine


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"turns": [f"Question {n}?", "More?"]}) + "\n" for n in range(3)))
    return path


def command(engine: Fake, questions: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "step5_serving", "bench", "--engine-url", engine.url, "--model", MODEL,
        "--prompts", str(questions), "--max-tokens", str(TOKENS), "--max-rate", "4", *more,
    ]  # fmt: skip


def test_a_whole_run_finds_the_delays_of_the_fake(slow: Fake, questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    more = ("--streams", "1,4", "--seconds", "0.5", "--pairs", "3", "--slo-ttft", "1")
    more = (*more, "--output", str(folder), "--json")
    done = subprocess.run(command(slow, questions, *more), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    document = read_results(folder / "bench.json")
    assert json.loads(done.stdout)["rows"] == document["rows"]
    assert (folder / "load_curve.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "load_curve.png"]

    rows = {row["name"]: {k: v["value"] for k, v in row["metrics"].items()} for row in document["rows"]}
    # What is below the fake's delays is wrong; what is above may be a busy machine.
    for target in ("engine", "engine+gateway"):
        for streams in (1, 4):
            row = rows[f"{target}, {streams} streams"]
            assert row["not answered"] == 0
            assert 0.3 * streams * TOKENS / ONE < row["tokens/s"] <= 1.01 * streams * TOKENS / ONE
            assert 1000 * (BEFORE + PER_TOKEN) - 1 < row["TTFT p50"] < 1000 * (BEFORE + PER_TOKEN) + 500
            assert 1000 * PER_TOKEN * 0.9 < row["ITL p50"] < 1000 * PER_TOKEN + 200
            assert row["× generate"] is None  # not measured here
    assert -50 < rows["engine+gateway, added TTFT"]["p50"] < 200  # ms
    assert rows["engine+gateway, added TTFT"]["pairs"] == 3
    prefix = rows["engine, shared prefix"]
    assert prefix["prompt tokens"] > 700
    assert 0.5 < prefix["second / first"] < 2  # the fake caches nothing
    assert rows["engine+gateway, highest rate"]["rate"] == 4
    assert rows["engine+gateway, highest rate"]["at the limit of the search"] == 1
    over = rows["engine+gateway, 3 × that rate"]
    assert over["rate"] == 12
    assert over["errors"] == 0
    # Every cell's prompts are new to the engine, but for the pairs, where both targets are asked the same one.
    asked = [json.loads(body)["messages"][-1]["content"] for _, body in slow.seen]
    numbered = [text for text in asked if text.startswith("(")]
    assert len(set(numbered)) > 0.6 * len(numbered) > 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_leaves_no_file_and_no_process(slow: Fake, questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    errors = tmp_path / "errors"
    with errors.open("wb") as stderr:
        running = subprocess.Popen(
            command(slow, questions, "--output", str(folder)), stderr=stderr, stdout=subprocess.PIPE
        )
        try:
            eventually(lambda: b"1 streams" in errors.read_bytes())
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            assert children
            time.sleep(0.3)
            running.send_signal(signal.SIGINT)
            out, _ = running.communicate(timeout=30)
        finally:
            running.kill()
    assert running.returncode == 130
    assert out == b""
    assert "Traceback" not in errors.read_text()
    assert not folder.exists()
    for child in children:
        assert not Path(f"/proc/{child}").exists()


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("{}\n")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"targets": "engine"}, "'engine': use vllm"),
        ({"targets": "embedded", "streams": "1,x"}, "--streams '1,x'"),
        ({"targets": "embedded", "output": empty}, "is a file"),
    ]
    for options, said in wrong:
        with pytest.raises(UserError, match=said) as caught:
            cli_bench.bench(**options)
        assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="not installed"):
        check_targets(["vllm+gateway"], has_url=False, has_vllm=False)

    arguments = [sys.executable, "-m", "step5_serving", "bench", "--targets", "embedded", "--prompts", str(empty)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "empty.jsonl: not JSON lines" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_ignores_sigterm_ends_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("step5_serving.bench_targets.GRACE", 0.3)
    code = "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN); " \
           "print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"  # fmt: skip
    log = tmp_path / "log"
    with process([sys.executable, "-c", code], {}, log) as child:
        pid = int(eventually(lambda: log.read_text().strip()))
    assert child.returncode == -signal.SIGKILL

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody reaps it here

    eventually(gone)


def test_the_search_and_the_overload_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that carries 5 requests a second and refuses the rest within 20 ms."""

    def probe(target: Target, prompts: Prompts, plan: Plan, rate: float) -> Probe:
        count = round(rate * plan.seconds)
        carried = min(count, round(5 * plan.seconds))
        ttft = 0.2 if count == carried else 0.3
        due = [index / rate for index in range(count)]
        samples = [Sample(at, at, "ok", first=at + ttft, end=at + 1, tokens=10) for at in due[:carried]]
        samples += [Sample(at, at, "refused", status=429, end=at + 0.02) for at in due[carried:]]
        return Probe(target.name, rate, summarise(samples, plan.slo))

    monkeypatch.setattr(bench, "probe", probe)
    target, plan = Target("t", "http://127.0.0.1:1/v1", MODEL), Plan(seconds=20)
    rows, probes = bench.sweep(target, Prompts(["a"]), plan)
    best, over = ({name: entry["value"] for name, entry in row["metrics"].items()} for row in rows)
    assert best["rate"] <= 5 <= best["rate"] * 1.25
    assert best["at the limit of the search"] == 0
    assert over["rate"] == 3 * best["rate"] == probes[-1].rate
    assert over["refused"] == over["requests"] - 100
    assert over["TTFT p99 ratio"] == pytest.approx(1.5)
    assert over["429 p99"] == pytest.approx(20)


def test_prompts_are_all_different() -> None:
    prompts = Prompts(["a", "b"])
    texts = [*prompts.fresh(6), prompts.long(), prompts.long()]
    assert len(set(texts)) == 8
    assert len(texts[-1].split()) == 700
    assert texts[-1].split()[0] != texts[-2].split()[0]


@pytest.mark.real
def test_mt_bench_is_fetched_and_read() -> None:
    prompts = read_prompts(None)
    assert len(prompts) == 80
    assert prompts[0].startswith("Compose an engaging travel blog post about a recent trip to Hawaii")
