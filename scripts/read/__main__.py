"""Build the repository as a book: each lesson beside its code, with search, in one folder that needs no server.

    make read                                   # writes out/read/ and says where to look
    python -m scripts.read --output ~/book

The book has no text of its own. Its pages are made from the repository's files (pages.py) in out/read-src, MkDocs turns
them into HTML, and the links of the result are checked (links.py): a dead one fails the build.

The generator is Material for MkDocs (on MkDocs 1.6; MkDocs 2 has neither plugins nor this theme). It gets fixes until
May 2027 and no new features. What it makes are static files from locked versions, which will not stop working then. Its
successor is Zensical, by the same people, for the same settings (book.yml) and the same Markdown: the way to go once it
has settled. In November 2026 it comes out every few days and calls itself alpha (0.0.73); 0.0.48 had no search.
"""

import contextlib
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from scripts.read.links import broken_links
from scripts.read.pages import PICTURES, all_pages
from shared.errors import UserError
from shared.terminal import run, say

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SITE, SOURCES = REPOSITORY / "out/read", REPOSITORY / "out/read-src"


def repository_files(root: Path) -> tuple[dict[str, str], set[str]]:
    """Return the text files that git tracks or would add, by path, and the paths of all that a book has (pictures too).

    Raises UserError where git does not know the folder.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if listed.returncode:
        raise UserError(f"{root}: the book is made of the files that git knows; clone the repository, or run git init")
    texts, pictures = {}, set()
    for path in sorted(filter(None, listed.stdout.split("\0"))):
        if not (root / path).is_file():
            continue
        if Path(path).suffix in PICTURES:
            pictures.add(path)
            continue
        with contextlib.suppress(UnicodeDecodeError):  # weights, for example: not to be read
            texts[path] = (root / path).read_text(encoding="utf-8")
    return texts, pictures | texts.keys()


def write_sources(root: Path, folder: Path) -> dict[str, str]:
    """Write MkDocs' input for the repository at `root` to a new folder; return its pages by path."""
    texts, files = repository_files(root)
    packages = {path.split("/")[0] for path in files if path.count("/") == 1 and path.endswith("/pyproject.toml")}
    pages = all_pages(texts, files, packages)
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in pages.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    for path in files - texts.keys():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, folder / path)
    for name in ("book.css", "iframe-worker.js"):
        shutil.copyfile(HERE / name, folder / name)
    return pages


def navigation(pages: dict[str, str]) -> list[dict[str, Any]]:
    """The table of contents: lessons in the order of the steps, then the other pages, then the folders of the code."""
    lessons = sorted(path for path in pages if path.startswith("step") and path.count("/") == 1)
    code = sorted({path.split("/")[1] for path in pages if path.startswith("code/") and path.endswith(".py.md")})
    rest = sorted(path for path in pages if not path.startswith("code/") and path not in [*lessons, "README.md"])
    return [
        {"Start": "README.md"},
        {"Lessons": lessons},
        {"More": rest},
        {"Code": ["code/index.md", *({name: f"code/{name}/index.md"} for name in code)]},
    ]


def build(target: Path) -> tuple[int, int]:
    """Build the book of this repository into `target`, replacing it; return the numbers of pages and of checked links.

    Raises UserError when the generator is not installed, when `target` is something else than a book, and, with the
    list, when a link is broken; `target` is then as it was.
    """
    empty = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not empty and not (target / "iframe-worker.js").is_file():
        raise UserError(f"{target}: is there already and is no book; give another folder")
    try:
        from mkdocs.commands.build import build as mkdocs_build
        from mkdocs.config import load_config
        from mkdocs.exceptions import Abort
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run: make read") from error
    pages = write_sources(REPOSITORY, SOURCES)
    logging.getLogger("mkdocs").addHandler(handler := logging.StreamHandler(sys.stderr))
    handler.setLevel(logging.WARNING)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        site = Path(folder, "site")
        places: dict[str, Any] = {"docs_dir": str(SOURCES), "site_dir": str(site), "nav": navigation(pages)}
        try:
            config = load_config(str(HERE / "book.yml"), strict=True, **places)
            config.plugins.on_startup(command="build", dirty=False)
            mkdocs_build(config)
        except Abort as error:
            raise UserError(f"the book was not built: {error}", exit_code=1) from error
        (site / "404.html").unlink()  # for servers only, its links begin at their root
        wrong, count = broken_links(site)
        if wrong:
            raise UserError("\n  ".join([f"{len(wrong)} broken links in the book:", *wrong]), exit_code=1)
        shutil.rmtree(target, ignore_errors=True)
        site.rename(target)
    return len(pages), count


def main(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the book goes.", show_default="out/read")] = SITE,
) -> None:
    """Build the repository as a book and print its address.

    Example: python -m scripts.read
    """
    target = output.expanduser().absolute()
    pages, links = build(target)
    print((target / "index.html").as_uri())
    say(f"{pages} pages, {links:,} links checked; open the address above in a browser, no server is needed")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
