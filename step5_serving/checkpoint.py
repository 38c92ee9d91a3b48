"""From a model spec to a directory that vLLM reads.

    python -m step5_serving.checkpoint smollm2-135m      # prints the directory

The project's own checkpoint directories carry the published int4 blocks beside the bf16 weights (quantized.safetensors,
for the embedded engine); vLLM loads every *.safetensors of a directory and would trip over their names. So it gets a
directory of links to everything else. Run as a process of its own because resolving a model imports torch: the gateway,
which needs neither, stays small and starts at once.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import UserError
from shared.terminal import run

OURS = "quantized.safetensors"


def directory_of(spec: str) -> Path:
    """Resolve in a process of its own; its progress goes to our stderr. Raises UserError as models.resolve does."""
    done = subprocess.run(
        [sys.executable, "-m", "step5_serving.checkpoint", spec], stdout=subprocess.PIPE, stderr=None, text=True
    )
    if done.returncode != 0:
        raise UserError(f"the model {spec!r} cannot be served (see above)", exit_code=done.returncode)
    return Path(done.stdout.splitlines()[-1])


def without_blocks(directory: Path, folder: Path) -> Path:
    """Return `directory`, or one beside it in `folder` that links to all its files but the int4 blocks."""
    from shared.files import atomic_directory

    if not (directory / OURS).exists():
        return directory
    target = folder / directory.name
    if not target.exists():
        with atomic_directory(target) as temporary:
            for file in directory.iterdir():
                if file.name != OURS:
                    os.symlink(file.resolve(), temporary / file.name)
    return target


def main(spec: Annotated[str, typer.Argument(metavar="MODEL")]) -> None:
    """Print the directory that vLLM is to open for MODEL, making it if need be."""
    from shared.models import resolve
    from step5_serving.database import home

    print(without_blocks(resolve(spec).resolve(), home() / "models"))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    run(app)
