"""The commands that this repository's Markdown pages show a reader, with the page and the line.

A code block without a language, or with sh, bash or console, holds commands; what stands in one and is none begins
with a line of NO_COMMANDS. In running text, `make …` and `.venv/bin/…` are commands as well.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELL = {"", "sh", "bash", "console"}
# First words of blocks that show a file tree, a conversation, a request's way or a calculation.
NO_COMMANDS = ("Makefile  ", "you> ", "who is it? ─", "0.10 $/h ÷")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
INLINE = re.compile(r"`((?:make|\.venv/bin/\S+) [^`]+)`")
PROMPTS = {"step2_tool_calling/prompts", "step4_finetune/evaluation/prompts"}  # what a model reads, not a person


@dataclass(frozen=True)
class Shown:
    """A command as a page shows it. text: on one line, without its comment. line: where it begins, from 1."""

    page: str
    line: int
    text: str

    @property
    def place(self) -> str:
        """README.md:7, as editors and terminals open it."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every Markdown file that git tracks or would add, without the models' prompts."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = (
        [ROOT / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else ROOT.rglob("*.md")
    )
    return sorted(p for p in found if p.is_file() and p.parent.relative_to(ROOT).as_posix() not in PROMPTS)


def all_shown() -> list[Shown]:
    """The commands of all pages; a command that stands on two pages is there twice."""
    return [shown for page in pages() for shown in shown_in(page.read_text("utf-8"), page.relative_to(ROOT).as_posix())]


def shown_in(text: str, page: str = "page.md") -> list[Shown]:
    """The commands of one page, in its order."""
    found: list[Shown] = []
    block: list[tuple[int, str]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if fence := re.match(r"\s*```\s*(\w*)", line):
            if block:
                found += [Shown(page, at, command) for at, command in _commands(block)]
            block = [] if block is None else None
            language = fence[1]
        elif block is None:
            found += [Shown(page, number, " ".join(command.split())) for command in INLINE.findall(line)]
        elif language in SHELL:
            block.append((number, line))
    return found


def _commands(block: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """(line, command) of a code block: continued lines joined, comments and needless spaces removed."""
    if block[0][1].startswith(NO_COMMANDS):
        return
    waiting, began = "", 0
    for number, line in block:
        began = began if waiting else number
        waiting += line
        if waiting.endswith("\\"):
            waiting = waiting[:-1]
            continue
        if command := " ".join(_without_comment(waiting).split()):
            yield began, command
        waiting = ""


def _without_comment(line: str) -> str:
    """A line up to the # that begins a comment: after a space, and in no quotation."""
    for mark in re.finditer(r"(?:^|\s)#", line):
        before = line[: mark.start()]
        if before.count('"') % 2 == 0 and before.count("'") % 2 == 0:
            return before
    return line


def split(command: str) -> tuple[dict[str, str], list[str]]:
    """(variables, words) of a command: `MODEL=x make step1` sets MODEL for make. An `export` has no words."""
    words = shlex.split(command)
    if words[0] == "export":
        return dict(word.split("=", 1) for word in words[1:]), []
    count = next((i for i, word in enumerate(words) if not ASSIGNMENT.match(word)), len(words))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]
