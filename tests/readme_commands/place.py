"""Where the pages' commands are run: a reader's home and working directory in one, and the process that runs them."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from shared.config import Settings, settings
from tests.readme_commands.pages import ROOT

CHILD = Path(__file__).with_name("child.py")
PATIENCE = 280  # seconds for all commands of a group; pytest itself would wait for 300
ARTIFACTS = ("minilm-l6-v2", "boolq", "bfcl-v4", "glaive-toolcall")
NOTES = {
    "notes/backups.md": "# Backups\n\nEvery Sunday I copy the photographs to the blue disk in the cellar.\n",
    "papers/rivers.md": "# Rivers\n\nSalmon live in the Amber river.\n",
}
PAPER = b"""%PDF-1.4
1 0 obj <</Type/Catalog /Pages 2 0 R>> endobj
2 0 obj <</Type/Pages /Kids[3 0 R] /Count 1>> endobj
3 0 obj <</Type/Page /Parent 2 0 R /MediaBox[0 0 300 300] /Contents 4 0 R /Resources<</Font<</F1 5 0 R>>>>>> endobj
4 0 obj <</Length 73>> stream
BT /F1 12 Tf 20 250 Td (Keep three copies, one of them elsewhere.) Tj ET
endstream endobj
5 0 obj <</Type/Font /Subtype/Type1 /BaseFont/Helvetica>> endobj
trailer <</Root 1 0 R>>
startxref
0
%%EOF
"""


def furnish(folder: Path) -> None:
    """Write the files that the pages' commands name."""
    for name, text in NOTES.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(text, "utf-8")
    (folder / "paper.pdf").write_bytes(PAPER)
    (folder / "shared").symlink_to(ROOT / "shared")  # the published adapters


def write_articles(folder: Path) -> None:
    """A hundredth of step 3's encyclopaedia, and the two articles that its README asks for."""
    from shared.artifacts import fetch
    from step3_rag.demo_collection import ARTIFACT, articles, file_names, markdown

    with (fetch(ARTIFACT) / "dev.jsonl").open(encoding="utf-8") as lines:
        found = articles(lines)
    wanted = {title for title in found if "bear hybrid" in title or "Television licens" in title}
    assert len(wanted) >= 2
    names = file_names([*wanted, *list(found)[::100]])
    folder.mkdir()
    for title, name in names.items():
        (folder / name).write_text(markdown(title, found[title]), "utf-8")


def borrowed_home(folder: Path) -> Path:
    """A cache with the user's artifacts and models, fetched where they are missing; logs and collections are ours."""
    from shared.artifacts import fetch
    from shared.models import resolve

    resolve("smollm2-135m")
    for name in ARTIFACTS:
        fetch(name)
    folder.mkdir()
    for name in ("artifacts", "models", "native"):
        theirs = settings().llm_roadmap_home / name
        theirs.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(theirs)
    return folder


def run_child(folder: Path, commands: list[dict[str, str]], variables: dict[str, str]) -> list[dict[str, Any]]:
    """Run commands in `folder`, as child.py says; return the outcomes of those that ended in time."""
    kept = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    ours = {
        "HOME": str(folder),
        # The cache stays the user's: matplotlib would read every font of the machine anew.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "COLUMNS": "80",
    }
    (folder / "commands.json").write_text(json.dumps(commands), "utf-8")
    process = subprocess.Popen(
        [sys.executable, str(CHILD), "commands.json", "outcomes.jsonl"],
        cwd=folder,
        env=kept | ours | variables,
        start_new_session=True,
    )
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and what it started
    process.wait()
    outcomes = folder / "outcomes.jsonl"
    return [json.loads(line) for line in outcomes.read_text("utf-8").splitlines()] if outcomes.exists() else []
