"""Markdown pages whose tables are blocks: found below a folder, filled from results files, compared with what they say.

    <!-- results: stepN_name/results/bench.json columns="decode tok/s,prefill tok/s" rows="bf16,int4" -->
    <!-- /results -->
    <!-- settings -->
    <!-- /settings -->

`python -m shared.results render` writes them, `check` compares them.
"""

import re
from pathlib import Path

from shared.errors import UserError
from shared.provenance import tracked_files
from shared.results import read_results, results_table, settings_table

BLOCK = re.compile(
    r"<!-- (?P<kind>results|settings)(?:: (?P<path>\S+?))?"
    r"(?: columns=\"(?P<columns>[^\"]+)\")?(?: rows=\"(?P<rows>[^\"]+)\")? -->"
)
FENCE = re.compile(r"\s*(```+|~~~+)")


def _block(marker: str, root: Path) -> str:
    """Return what belongs below an opening marker. Raises UserError when the marker or its file is wrong."""
    match = BLOCK.fullmatch(marker)
    if match and match["kind"] == "settings" and not any(match.group(2, 3, 4)):
        return settings_table()
    if not match or match["kind"] == "settings" or not match["path"]:
        raise UserError('a block opens with <!-- settings --> or <!-- results: FILE.json columns="a,b" rows="x,y" -->')
    columns, rows = ([part.strip() for part in text.split(",")] if text else None for text in match.group(3, 4))
    return results_table(read_results(root / match["path"]), columns, rows)


def render_text(text: str, root: Path) -> str:
    """Return Markdown text with every block filled in; the files that blocks name are relative to `root`.

    Markers count only on a line of their own outside code fences, so a page can show how to write one.
    Raises UserError with the line number of a block that is wrong, not closed or not opened.
    """
    output: list[str] = []
    fence = kind = ""  # the fence or the block that the current line is inside of
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        opening, closing = re.match(r"<!-- (results|settings)\b", stripped), f"<!-- /{kind} -->"
        if kind:
            if opening:
                raise UserError(f"line {number}: the {kind} block above is not closed with {closing}")
            if stripped == closing:
                output.append(stripped)
                kind = ""
            continue  # old content
        mark = FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        output.append(line)
        if not fence and opening:
            try:
                output.append(_block(stripped, root))
            except UserError as error:
                raise UserError(f"line {number}: {error}") from None
            kind = opening[1]
        elif not fence and stripped in ("<!-- /results -->", "<!-- /settings -->"):
            raise UserError(f"line {number}: {stripped} closes a block that was never opened")
    if kind:
        raise UserError(f"the last {kind} block is not closed with <!-- /{kind} -->")
    return "\n".join(output)


def outdated(root: Path) -> dict[Path, str]:
    """Return {page: what it should say} for each Markdown file below `root` whose blocks differ from their sources.

    Raises UserError that names the page and line of a block that cannot be rendered.
    """
    differing = {}
    for page in tracked_files(root, "*.md"):
        text = page.read_text(encoding="utf-8")
        try:
            rendered = render_text(text, root)
        except UserError as error:
            raise UserError(f"{page.relative_to(root)}: {error}") from None
        if rendered != text:
            differing[page] = rendered
    return differing
