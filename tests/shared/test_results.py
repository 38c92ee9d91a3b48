"""shared/results.py and results_pages.py: the file format, its errors, formatting, and the blocks in Markdown.

python -m pytest tests/shared/test_results.py
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import UserError
from shared.provenance import cpu_has_fast_bfloat16, git_revision, hardware, versions
from shared.results import (
    Row,
    format_metric,
    metric,
    read_results,
    results_table,
    settings_table,
    write_results,
)
from shared.results_pages import outdated, render_text
from shared.stats import mean_ci, wilson_ci

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS: list[Row] = [
    {"name": "bf16", "metrics": {"decode tok/s": metric(16.94, (16.1, 17.8)), "tokens": metric(12_800)}},
    {"name": "int4 | ours", "metrics": {"decode tok/s": metric(88.21)}},
]
BLOCK = '<!-- results: bench.json columns="tokens,decode tok/s" -->'


def written(folder: Path, **changes: Any) -> Path:
    """Write a results file, with some of its keys replaced, and return its path."""
    path = folder / "bench.json"
    write_results(path, command="python -m step1_foundations bench", rows=ROWS, n=20, packages=["numpy"])
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_round_trip_says_where_it_ran(tmp_path: Path) -> None:
    document = read_results(written(tmp_path))
    assert document["rows"] == ROWS
    assert document["n"] == 20
    assert document["versions"].keys() == {"python", "numpy"}
    assert document["hardware"]["cores"] >= 1
    assert document["hardware"]["memory_gib"] > 0.1
    assert document["git_revision"] == git_revision()


def test_provenance_needs_no_heavy_import() -> None:
    code = (
        "import sys, shared.provenance as p; p.hardware(); p.cpu_has_fast_bfloat16(); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
    assert versions("no-such-package-here").keys() == {"python"}
    assert hardware()["instruction_set"]


@pytest.mark.parametrize(("instructions", "fast"), [("amx_bf16", True), ("avx512_bf16", True), ("avx512", False)])
def test_bfloat16_is_fast_where_the_cpu_has_instructions_for_it(
    instructions: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.provenance._cpu", lambda: ("a CPU", 2, instructions))
    assert cpu_has_fast_bfloat16() is fast


def test_revision_is_dirty_for_code_but_not_for_results(tmp_path: Path) -> None:
    for name in (
        "shared/__init__.py",
        "shared/provenance.py",
        "step1/code.py",
        "step1/results/x.json",
        "step1/README.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((REPOSITORY / "shared" / "provenance.py").read_text())

    def revision() -> str:
        code = "import sys; sys.dont_write_bytecode = True; from shared.provenance import *; print(git_revision())"
        return subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True).strip()

    assert revision() == "unknown"
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--no-gpg-sign", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = revision()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "step1" / "results" / "x.json").write_text("{}")
    (tmp_path / "step1" / "results" / "new.json").write_text("{}")
    (tmp_path / "step1" / "README.md").write_text("")
    assert revision() == clean
    (tmp_path / "step1" / "new.py").write_text("")
    assert revision() == f"{clean}+dirty"


def test_metric_takes_numpy_scalars_and_estimates() -> None:
    assert json.dumps(metric(np.float32(0.5))) == '{"value": 0.5, "ci95": null}'
    assert type(metric(np.int64(3))["value"]) is int
    estimate = metric(*wilson_ci(3, 10), unit="%")
    assert estimate["ci95"] == list(wilson_ci(3, 10).ci95)
    assert format_metric(metric(*mean_ci([2.0] * 5))) == "2.00 [2.00, 2.00]"


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (metric(12.345, (11.94, 12.78)), "12.3 [11.9, 12.8]"),
        (metric(12.3, (9.87, 14.2)), "12.3 [9.9, 14.2]"),
        (metric(0.001, (-0.123, 0.125)), "0.001 [-0.123, 0.125]"),
        (metric(0.0, (-0.03, 0.03)), "0.0000 [-0.0300, 0.0300]"),
        (metric(99.5, (98, 103)), "99.5 [98.0, 103.0]"),
        (metric(-0.0004, (-0.5, 0.5)), "0.00 [-0.50, 0.50]"),
        (metric(0.01234), "0.0123"),
        (metric(0.0), "0.00"),
        (metric(1234.5), "1,230"),
        (metric(98_362_432), "98,362,432"),
        (metric(5), "5"),
        (metric(98_362_432, digits=2), "98,000,000"),
        (metric(1.23456, digits=5), "1.2346"),
        (metric(7.0, unit="ms"), "7.00 ms"),
        (metric(None), "–"),
        (None, "–"),
    ],
)
def test_numbers_are_formatted_for_people(entry: Any, text: str) -> None:
    assert format_metric(entry) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "12"])
def test_writing_a_bad_number_is_the_callers_bug(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"rows\[0\] \(x\), metric 'm': value must be a finite number"):
        write_results(tmp_path / "x.json", command="c", rows=[{"name": "x", "metrics": {"m": _raw(value)}}])
    assert list(tmp_path.iterdir()) == []


def _raw(value: Any, ci95: Any = None, **more: Any) -> Any:
    return {"value": value, "ci95": ci95, **more}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {}}, "needs 'rows' as list"),
        ({"command": None}, "needs 'command' as str"),
        ({"hardware": []}, "needs 'hardware' as dict"),
        ({"n": "many"}, "'n' must be a whole number"),
        ({"rows": [1]}, r"rows\[0\] must be"),
        ({"rows": [{"name": "x"}]}, r"rows\[0\] must be"),
        ({"rows": [{"name": "x", "metrics": {"m": 3}}]}, r"\(x\), metric 'm': must be"),
        ({"rows": [{"name": "x", "metrics": {"m": {"value": 1}}}]}, "metric 'm': must be"),
        ({"rows": [{"name": "x", "metrics": {"m": _raw(True)}}]}, "value must be"),
        ({"rows": [{"name": "x", "metrics": {"m": _raw(1, [2])}}]}, "ci95 must be"),
        ({"rows": [{"name": "x", "metrics": {"m": _raw(1, [2, 1])}}]}, "ci95 must be"),
        ({"rows": [{"name": "x", "metrics": {"m": _raw(1, digits=0)}}]}, "digits must be"),
        ({"rows": [{"name": "x", "metrics": {"m": _raw(1, unit=5)}}]}, "unit must be"),
    ],
)
def test_malformed_files_are_named_with_the_reason(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as raised:
        read_results(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b'{"rows": NaN}'])
def test_files_that_are_not_json_are_user_errors(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(UserError, match=r"x\.json"):
        read_results(tmp_path / "x.json")


def test_table_has_the_chosen_columns_and_its_source(tmp_path: Path) -> None:
    document = read_results(written(tmp_path, git_revision="abc1234"))
    document["hardware"] = {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 7.8, "instruction_set": "avx2"}
    document["versions"] = {"python": "3.11.7", "numpy": "2.3.5"}
    assert results_table(document, ["tokens", "decode tok/s"]).splitlines() == [
        "|  | tokens | decode tok/s |",
        "| --- | ---: | ---: |",
        "| bf16 | 12,800 | 16.9 [16.1, 17.8] |",
        r"| int4 \| ours | – | 88.2 |",
        "",
        "`python -m step1_foundations bench` · AMD EPYC, 2 cores, 7.8 GiB, avx2 · n = 20 · "
        "python 3.11.7, numpy 2.3.5 · revision abc1234",
    ]
    assert results_table(document).startswith("|  | decode tok/s | tokens |")
    assert results_table(document, None, ["bf"]).splitlines()[2:4] == ["| bf16 | 16.9 [16.1, 17.8] | 12,800 |", ""]
    with pytest.raises(UserError, match="no row has 'int8' in its name"):
        results_table(document, None, ["bf16", "int8"])
    with pytest.raises(UserError, match="no row has a metric 'speed'; there are: decode tok/s, tokens"):
        results_table(document, ["speed"])


def test_rendering_fills_blocks_once_and_leaves_the_rest(tmp_path: Path) -> None:
    written(tmp_path)
    text = (
        f"# Title\n\n{BLOCK}\nold\n<!-- /results -->\n\n```\n{BLOCK}\n```\n\n<!-- settings -->\n<!-- /settings -->\nend"
    )
    once = render_text(text, tmp_path)
    assert "old" not in once
    assert "| bf16 | 12,800 |" in once
    assert "`MODEL`" in once
    assert f"```\n{BLOCK}\n```" in once  # an example in a code fence stays an example
    assert once.startswith("# Title\n")
    assert once.endswith("\nend")
    assert render_text(once, tmp_path) == once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"\n{BLOCK}\n", "not closed"),
        (f"{BLOCK}\n{BLOCK}\n", "line 2: the results block above is not closed"),
        ("<!-- /results -->", "line 1: .* never opened"),
        ("<!-- results: -->\n<!-- /results -->", "line 1: a block opens with"),
        ("<!-- results: bench.json column=x -->\n<!-- /results -->", "a block opens with"),
        ("<!-- settings: x.json -->\n<!-- /settings -->", "a block opens with"),
        ("<!-- results: gone.json -->\n<!-- /results -->", r"line 1: .*gone\.json does not exist; run the benchmark"),
    ],
)
def test_broken_blocks_are_named(tmp_path: Path, text: str, message: str) -> None:
    written(tmp_path)
    with pytest.raises(UserError, match=message):
        render_text(text, tmp_path)


def test_settings_table_is_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    table = settings_table()
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("MODEL", "other")
    assert settings_table() == table
    assert "| `MODEL` | `smollm2-135m` | catalog name" in table
    assert "| `THREADS` | unset |" in table
    assert str(Path.home()) not in table


def results_command(verb: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shared.results", verb],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("in_git", [True, False])
def test_check_fails_until_rendered(tmp_path: Path, in_git: bool) -> None:
    if in_git:
        subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
        (tmp_path / ".gitignore").write_text("ignored/\n")
        (tmp_path / "ignored").mkdir()
        (tmp_path / "ignored" / "README.md").write_text("<!-- results: nothing.json -->\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "README.md").write_text("<!-- /results -->\n" * (not in_git))
    written(tmp_path)
    page = tmp_path / "step1" / "README.md"
    page.parent.mkdir()
    page.write_text(f"{BLOCK}\n<!-- /results -->\n")
    before = results_command("check", tmp_path)
    assert (before.returncode, before.stdout) == (1, "step1/README.md\n")
    assert "shared.results render" in before.stderr
    assert "| bf16 |" in outdated(tmp_path)[page]
    assert results_command("render", tmp_path).stdout == "step1/README.md\n"
    assert "| bf16 | 12,800 | 16.9 [16.1, 17.8] |" in page.read_text()
    after = results_command("check", tmp_path)
    assert (after.returncode, after.stdout, after.stderr) == (0, "", "")
    written(tmp_path, n=21)
    assert results_command("check", tmp_path).returncode == 1


def test_a_missing_file_is_one_line_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("text\n<!-- results: gone.json -->\n<!-- /results -->\n")
    failed = results_command("check", tmp_path)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: README.md: line 2: ")
    assert failed.stderr.count("\n") == 1


def test_help_is_quick() -> None:
    best = min(_seconds(["--help"]) for _ in range(3))
    assert best < 1.0  # 0.3 s on an idle machine; numpy, torch or rich's Markdown at import would show


def _seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "shared.results", *arguments], cwd=REPOSITORY, check=True, capture_output=True
    )
    return time.perf_counter() - start
