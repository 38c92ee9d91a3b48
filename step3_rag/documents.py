"""Which files there are to read, and how each becomes a document or a remark that says why not.

A collection is somebody's real folder: it holds scans, empty files, archives, files in old encodings, files without
permission. None of them may stop the rest, and none may vanish without a word, so everything here returns remarks.

    python -m pytest tests/step3/test_documents.py
"""

import codecs
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import UserError
from step3_rag.formats import TEXT_FORMATS, Document, UnreadableError, clean, html, pdf, plain

# 32 MB of text is six long novels times ten; what is larger is a log or a dump. A PDF of that size is mostly pictures.
MAX_BYTES = 32_000_000
_SKIPPED_FOLDERS = frozenset(("__pycache__", "node_modules", "site-packages"))


@dataclass(frozen=True)
class Remark:
    """Something about one file, or one folder, that the person should know. path: printable, whatever its bytes."""

    path: str
    problem: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.encode(errors="replace").decode())


@dataclass
class Found:
    """files: absolute, sorted, each once. roots: the absolute paths asked for. closed: folders that did not open."""

    files: list[Path] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def covers(self, source: str) -> bool:
        """Whether the search would have come across this source if it still existed."""
        around = {Path(source), *Path(source).parents}
        return not around.isdisjoint(self.roots) and around.isdisjoint(self.closed)


def find_files(paths: Sequence[Path]) -> Found:
    """Return the files at or under `paths`: a folder gives those of known types, a file named outright any type.

    Hidden folders and files, links, environments and caches inside a folder are left out. A path that does not exist
    is still a root, so that what was indexed there is found to be gone; whoever calls decides if that is a mistake.
    """
    found = Found()
    files: set[Path] = set()
    for path in paths:
        root = Path(os.path.abspath(Path(path).expanduser()))
        found.roots.append(root)
        if root.is_dir():
            files.update(_walk(root, found))
        elif root.exists():
            files.add(root)
    # A name in an old encoding (from an archive, say) reaches Python as half surrogate pairs, which cannot be stored.
    found.files = sorted(path for path in files if _is_text(path))
    found.remarks += [
        Remark(str(path), "has a name that is not UTF-8; rename it") for path in sorted(files.difference(found.files))
    ]
    return found


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(root: Path, found: Found) -> list[Path]:
    files: list[Path] = []
    others: Counter[str] = Counter()

    def unreadable(error: OSError) -> None:
        found.closed.append(Path(error.filename))
        found.remarks.append(
            Remark(str(error.filename), f"cannot be opened ({error.strerror}); what was indexed stays")
        )

    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED_FOLDERS
            and not Path(folder, name, "pyvenv.cfg").exists()
        )
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.is_symlink() or not path.is_file():
                others["link or device"] += 1
            elif path.suffix.lower() in TEXT_FORMATS or path.suffix.lower() == ".pdf":
                files.append(path)
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in others.most_common(6))
        more = ", …" if len(others) > 6 else ""
        found.remarks.append(Remark(str(root), f"{others.total()} files of other types were left out: {kinds}{more}"))
    return files


_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_bytes(path: Path) -> bytes:
    """Return a file's content. Raises OSError when it cannot be opened, UnreadableError when it is too large."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        size = max(size, len(data))  # a device or a growing file reports less
        raise UnreadableError(f"is {size / 1e6:.0f} MB, more than the limit of {MAX_BYTES / 1e6:.0f} MB; split it")
    return data


def parse(path: Path, data: bytes) -> Document:
    """Return the document in `data`; the type is told by the suffix, and by the content for PDF.

    Raises UnreadableError when there is no text in it: empty, binary, in another encoding, a damaged or scanned PDF.
    """
    suffix = path.suffix.lower()
    if not data.strip():
        raise UnreadableError("is empty")
    if suffix == ".pdf" or data.startswith(b"%PDF-"):
        return pdf(data)
    read = TEXT_FORMATS.get(suffix, plain)
    text = decode(data, declared=_declared_encoding(data) if read is html else None)
    document = read(text)
    if not document.text.strip():
        raise UnreadableError("has no visible text")
    return document


def decode(data: bytes, declared: str | None = None) -> str:
    """Return the text: UTF-8, UTF-16 or UTF-32 by their byte order mark, else what an HTML page declares.

    Line ends stay as they are; the byte order mark is not part of the text. Raises UnreadableError for binary content
    and for bytes that are not in that encoding: a guess would put wrong letters into citations.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    head = b"" if encoding else data[:8192]
    encoding = encoding or declared or "utf-8"
    if b"\0" in head:
        raise UnreadableError("is binary")
    try:
        return clean(data.decode(encoding))
    except UnicodeDecodeError as error:
        if sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head) > len(head) // 20:
            raise UnreadableError("is binary") from None
        raise UnreadableError(
            f"is not {encoding.upper().removesuffix('-SIG')} (byte {error.start:,} is 0x{data[error.start]:02X}); "
            "convert it: iconv -f WINDOWS-1252 -t UTF-8, with the encoding it has"
        ) from None


def _declared_encoding(data: bytes) -> str | None:
    """The charset that an HTML page's first kilobyte names, if it is one for text."""
    match = re.search(rb"""charset\s*=\s*["']?([A-Za-z0-9_.:-]+)""", data[:1024])
    if not match:
        return None
    try:
        name = codecs.lookup(match[1].decode()).name
    except LookupError:
        return None
    if name in ("iso8859-1", "ascii"):
        return "cp1252"  # what browsers take these two for (WHATWG Encoding Standard, 4.2)
    # A page that says UTF-16 in ASCII letters is not; and Python also knows hex, zlib and the like as encodings.
    return name if re.match("iso|cp|koi|gb|big5|euc|shift|mac", name) else None


def require_some(found: Found, indexed: Sequence[str]) -> None:
    """Raise UserError when a path neither exists nor ever did, as far as the index knows."""
    for root in found.roots:
        if not root.exists() and not any(root in (Path(source), *Path(source).parents) for source in indexed):
            raise UserError(f"{root} does not exist; give files or folders to read")
