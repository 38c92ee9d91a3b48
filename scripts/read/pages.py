"""What the book is made of: the repository's Markdown files as they are, and a page for every other text file.

A link from a lesson to a source file becomes a link to that file's page, and the page gets one back to the very place.
After each section stands, folded, the code that its links name by line.
"""

import ast
import html
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from scripts.read.docstrings import markdown
from scripts.read.listing import extent, listing
from shared.errors import UserError

CODE = "code"  # the folder of the book with the pages of source files and folders
PICTURES = {".png", ".svg", ".jpg", ".gif"}
# Code comes first, so that a link inside it is none; a label may itself hold code or brackets.
LINK = re.compile(r"(?P<code>(`+).+?\2)|(?P<label>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<address>[^)\s]+)\)")


@dataclass(frozen=True)
class Mention:
    """A place in a lesson that points at a file, folder or line. place: its anchor in the lesson."""

    lesson: str
    title: str
    section: str
    place: str
    target: str
    line: int | None

    @property
    def label(self) -> str:
        """What the link back is called."""
        return self.title if self.section == self.title else f"{self.title} › {self.section}"


def is_lesson(path: str) -> bool:
    """Whether a file is a page by itself. Other Markdown (a prompt, for example) is a source file."""
    pure = PurePosixPath(path)
    return pure.suffix == ".md" and (pure.name == "README.md" or str(pure.parent) in (".", "docs"))


def folders_of(paths: Iterable[str]) -> set[str]:
    """Every folder that holds one of the files; "." is the repository itself."""
    return {str(parent) for path in paths for parent in PurePosixPath(path).parents}


def page_of(path: str, folders: set[str]) -> str:
    """The book's Markdown file for a file or folder of the repository. Pictures and lessons keep their place."""
    if path in folders:
        return posixpath.normpath(f"{CODE}/{path}/index.md")
    return path if is_lesson(path) or PurePosixPath(path).suffix in PICTURES else f"{CODE}/{path}.md"


def relative(target: str, page: str) -> str:
    """The address of one file of the book, seen from another."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def built(page: str) -> str:
    """The HTML file that a Markdown file of the book becomes."""
    pure = PurePosixPath(page)
    return str(pure.with_name("index.html") if pure.name == "README.md" else pure.with_suffix(".html"))


# -- lessons -----------------------------------------------------------------------------------------------------------


def lesson_page(path: str, texts: Mapping[str, str], files: set[str]) -> tuple[str, list[Mention]]:
    """Return a lesson's page and what it points at. texts: the text files by path. files: all paths, pictures too.

    Raises UserError for a link to a file that is not in the repository, or to a line that its file does not have.
    """
    folders = folders_of(files)
    mentions: list[Mention] = []
    title = section = ""
    shown: list[Mention] = []  # the lines that the current section names

    def link(match: re.Match[str]) -> str:
        label, address = match["label"], match["address"]
        if match["code"] or re.match(r"[a-z+]+:|#", address):
            return match[0]
        name, _, anchor = address.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
        if target not in files | folders:
            raise UserError(f"{path}: the link to {address} leads nowhere; {target} is not in the repository")
        place = relative(page_of(target, folders), path) + (f"#{anchor}" if anchor else "")
        if page_of(target, folders) == target:  # another lesson, or a picture
            return f"{label}({place})"
        found = re.fullmatch(r"L(\d+)(?:-L?\d+)?", anchor)
        mention = Mention(path, title, section, f"from-{len(mentions) + 1}", target, int(found[1]) if found else None)
        if mention.line and not 0 < mention.line <= len(texts.get(target, "").splitlines()):
            raise UserError(f"{path}: {address} is a line that {target} does not have")
        mentions.append(mention)
        if mention.line and mention.line not in {other.line for other in shown if other.target == target}:
            shown.append(mention)
        return f"{label}({place.split('#')[0]}{f'#L{mention.line}' if mention.line else ''}){{#{mention.place}}}"

    out: list[str] = []
    paragraph: list[str] = []  # a link may be broken over two lines

    def flush() -> None:
        out.extend(LINK.sub(link, "\n".join(paragraph)).split("\n") if paragraph else [])
        paragraph.clear()

    fence = data = ""
    for line in texts[path].splitlines():
        if found := re.match(r" *(```+|~~~+)", line):
            fence = found[1] if not fence else "" if found[1].startswith(fence) else fence
        elif not fence and (found := re.match(r"(#+) +(.+?) *#*$", line)):
            flush()
            out += excerpts(shown, texts, path, folders)
            shown.clear()
            section = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", found[2])
            title = title or section
        elif not fence and (found := re.match(r"<!-- results: (\S+)", line)):
            data = found[1]
        elif not fence and line.startswith("<!-- /results") and data in files:  # the numbers, beside their table
            line = f"\n[{data}]({relative(page_of(data, folders), path)})\n"
        elif not fence and line.strip():
            paragraph.append(line)
            continue
        flush()
        out.append(line)
    flush()
    out += excerpts(shown, texts, path, folders)
    return "\n".join(out) + "\n", mentions


def excerpts(mentions: Iterable[Mention], texts: Mapping[str, str], path: str, folders: set[str]) -> list[str]:
    """The code behind a section's links, folded."""
    out = []
    for mention in mentions:
        lines, first = texts[mention.target].splitlines(), mention.line or 1
        last = extent(mention.target, lines, first)
        page = relative(built(page_of(mention.target, folders)), path)
        name = re.match(r"(?:async )?(?:def|class) (\w+)", lines[first - 1].strip())
        summary = f"<code>{name[1]}</code> in " if name else ""
        summary += f"{html.escape(mention.target)}, line{f' {first}' if first == last else f's {first} to {last}'}"
        code = listing(mention.target, "\n".join(lines[first - 1 : last]), first, page).strip()
        out += ["", f'<details class="excerpt" data-search-exclude><summary>{summary}</summary>{code}</details>', ""]
    return out


# -- source files ------------------------------------------------------------------------------------------------------


def source_page(path: str, text: str, mentions: Iterable[Mention], folders: set[str], module: str | None) -> str:
    """Return the page of a source file: what it is, who writes about it, its lines, its reference.

    mentions: the places that point at it. module: its dotted name if it is importable, else None (no reference).
    """
    page = page_of(path, folders)
    mentions = list(mentions)
    back = {m.line: (f"{relative(built(m.lesson), page)}#{m.place}", m.label) for m in reversed(mentions) if m.line}
    out = [*_head(path, page, folders), *_read_about(mentions, page)]
    if path.endswith(".py"):
        tree = ast.parse(text)
        out[2:2] = [markdown(ast.get_docstring(tree) or ""), ""]
    out += ["## Source { #source data-search-exclude }", "", listing(path, text, back=back)]
    if module is not None and (names := _public(tree)):
        out += ["## Reference", "", *(f"::: {module}.{name}" for name in names)]
    return "\n".join(out) + "\n"


def folder_page(path: str, texts: Mapping[str, str], mentions: Iterable[Mention], folders: set[str]) -> str:
    """Return the page of a folder: what is in it, each Python file with the first line of its docstring."""
    page = page_of(path, folders)
    out = [*_head(path, page, folders), *_read_about(mentions, page)]
    inside = {name for name in [*texts, *folders] if str(PurePosixPath(name).parent) == path and name != "."}
    for name in sorted(inside, key=lambda name: (name not in folders, name)):
        short = PurePosixPath(name).name + ("/" if name in folders else "")
        about = ""
        if name.endswith(".py") and (docstring := ast.get_docstring(ast.parse(texts[name]))):
            about = f": {markdown(docstring.splitlines()[0])}"
        out.append(f"- [`{short}`]({relative(page_of(name, folders), page)}){about}")
    return "\n".join(out) + "\n"


def all_pages(texts: Mapping[str, str], files: set[str], packages: set[str]) -> dict[str, str]:
    """Return all pages of the book by path. packages: the top folders whose Python files get a reference."""
    folders = folders_of(files)
    about: dict[str, list[Mention]] = defaultdict(list)
    pages = {}
    for path in filter(is_lesson, texts):
        pages[path], mentions = lesson_page(path, texts, files)
        for mention in mentions:
            about[mention.target].append(mention)
    for path in (path for path in texts if not is_lesson(path)):
        module = path.removesuffix(".py").replace("/", ".") if path.endswith(".py") else None
        if module is not None and (path.split("/")[0] not in packages or path.endswith("__.py")):
            module = None
        pages[page_of(path, folders)] = source_page(path, texts[path], about[path], folders, module)
    for folder in folders:
        pages[page_of(folder, folders)] = folder_page(folder, texts, about[folder], folders)
    return pages


def _head(path: str, page: str, folders: set[str]) -> list[str]:
    """Title, and the way up."""
    pure = PurePosixPath(path)
    name = "The code" if path == "." else pure.name
    ways = [f"[{p.name or 'code'}]({relative(page_of(str(p), folders), page)})" for p in reversed(pure.parents)]
    # In search results lessons come first. Lines of code get the room of the table of contents at the side.
    meta = f"title: {path if path != '.' else name}\nsearch: {{ boost: 0.1 }}"
    meta += "" if path in folders else "\nhide: [navigation]"
    return [f"---\n{meta}\n---\n\n{' / '.join(ways)}\n{{ .way }}\n\n# {name.replace('_', '&#95;')}", ""]


def _read_about(mentions: Iterable[Mention], page: str) -> list[str]:
    """Where lessons speak of this file, in a box."""
    by_label: dict[str, list[Mention]] = defaultdict(list)
    for mention in mentions:
        by_label[mention.label].append(mention)
    if not by_label:
        return []
    out = ["**Read about it in**", "{ .about }", ""]
    for label, places in by_label.items():
        lines = ", ".join(f"[line {m.line}](#L{m.line})" for m in places if m.line)
        address = f"{relative(places[0].lesson, page)}#{places[0].place}"
        out.append(f"- [{label}]({address}){f' ({lines})' if lines else ''}")
    return [*out, ""]


def _public(tree: ast.Module) -> list[str]:
    """The names of a module's functions and classes that are for others and say what they are."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = (node for node in tree.body if isinstance(node, kinds))
    return [node.name for node in found if not node.name.startswith("_") and ast.get_docstring(node)]
