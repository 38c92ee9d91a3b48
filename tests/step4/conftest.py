"""Calling step 4's program from a test, the endpoint it talks to, and the adapter that DPO starts from."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dpo_world import write_adapter
from harness_world import served_models

from step4_finetune.cli import main
from tests.shared.scripted_endpoint import Served


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def step4(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Call the program in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["step4", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def served() -> Iterator[Served]:
    """Models over HTTP that know what harness_world.KNOWS says."""
    with served_models() as found:
        yield found


@pytest.fixture(scope="module")
def sft(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter that DPO starts from."""
    return write_adapter(tmp_path_factory.mktemp("sft") / "adapter", tiny_llama)
