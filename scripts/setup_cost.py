"""What each step costs to set up: time and disk, the first and the second time.

    .venv/bin/python -m scripts.setup_cost                  # docs/setup.json, about 15 minutes; then `make results`
    .venv/bin/python -m scripts.setup_cost --step 1 --step 3     # these; the other rows stay

Each step is cloned into an empty folder and started there by its make command with an empty package cache and an empty
LLM_ROADMAP_HOME, twice. So the first time includes every download, from whatever registry the machine uses. Step 4's
command takes 19 minutes: for it only the packages and the data are measured.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import UserError
from shared.results import Row, metric, read_results, write_results
from shared.terminal import run, say

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "setup.json"
COMMANDS = {
    "1": "make step1",
    "2": "make step2",
    "3": "make step3",
    "4": ".venv/bin/python -m step4_finetune data build tools",
    "5": "make step5-demo",
}


def disk(folder: Path) -> int:
    """Bytes on disk of a folder's files."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def measure(step: str) -> Row:
    """Set up and run one step twice in an empty place. Raises UserError, with the end of its output, when it fails."""
    with tempfile.TemporaryDirectory(prefix=f"setup-step{step}-", ignore_cleanup_errors=True) as name:
        clone, cache, home = (Path(name) / part for part in ("clone", "uv", "home"))
        places = {"UV_CACHE_DIR": str(cache), "PIP_NO_CACHE_DIR": "1", "LLM_ROADMAP_HOME": str(home)}

        def seconds(command: str) -> float:
            say(f"step {step}: {command}")
            begun = time.perf_counter()
            done = subprocess.run(
                command.split(), cwd=clone, env=os.environ | places, capture_output=True, text=True, errors="replace"
            )
            if done.returncode:
                raise UserError(f"step {step}: {command} failed:\n{(done.stdout + done.stderr)[-2000:]}")
            return time.perf_counter() - begun

        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        packages = seconds(f"make .venv/.step{step}")
        first, second = seconds(COMMANDS[step]), seconds(COMMANDS[step])
        return {
            "name": COMMANDS[step].removeprefix(".venv/bin/"),
            "metrics": {
                "first time": metric(packages + first, unit="s"),
                "of it packages": metric(packages, unit="s"),
                "second time": metric(second, unit="s"),
                "packages on disk": metric(disk(clone / ".venv") / 1e6, unit="MB"),
                "models and data on disk": metric(disk(home) / 1e6, unit="MB"),
            },
        }


def main(
    step: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable.", show_default="all five")] = None,
) -> None:
    """Measure the time and disk that each step takes, the first and the second time."""
    steps = step or list(COMMANDS)
    if unknown := set(steps) - set(COMMANDS):
        raise UserError(f"--step {min(unknown)}: use {', '.join(COMMANDS)}")
    rows = {row["name"]: row for row in (read_results(OUTPUT)["rows"] if OUTPUT.exists() else [])}
    rows |= {row["name"]: row for row in map(measure, steps)}
    write_results(
        OUTPUT,
        rows=[rows[name] for name in sorted(rows, key=[c.removeprefix(".venv/bin/") for c in COMMANDS.values()].index)],
        command="python -m scripts.setup_cost",
        notes="all downloads included; each step by itself, so what two of them share is in both rows",
        packages=["uv"],
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
