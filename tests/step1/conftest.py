"""Calling step 1's program from a test."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from step1_foundations.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def step1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Call the program in this process (torch is imported once), in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["step1", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return call
