"""The catalogue of pinned artifacts as typed objects: reads and checks shared/catalog.toml.

A catalogue is trusted for its hashes but still checked: a typing mistake must fail here, by name, not after a download.

    python -m shared.artifacts list
    python -m shared.artifacts --catalog my-catalog.toml list
"""

import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from shared.errors import UserError

CATALOG = Path(__file__).with_name("catalog.toml")

ArchiveKind = Literal["wheel", "sdist"]


@dataclass(frozen=True, kw_only=True)
class Package:
    """Files inside an archive of a package index; the fields are explained at the top of catalog.toml."""

    name: str
    package: str
    version: str
    member: str
    bytes: int
    licence: str
    source: str
    what: str
    sha256: str = ""
    files: dict[str, str] = field(default_factory=dict)
    archive: ArchiveKind = "wheel"
    template: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for anything that could not be fetched, or not safely."""
        folder = self.member.endswith("/")
        hashes = list(self.files.values()) if folder else [self.sha256]
        if not hashes or bool(self.sha256) == folder or not all(re.fullmatch("[0-9a-f]{64}", h) for h in hashes):
            raise ValueError("needs `sha256` for a file, or a table `files` of sha256 for a member that ends with /")
        if self.archive not in ("wheel", "sdist"):
            raise ValueError("`archive` is wheel or sdist")
        # The version is part of a folder name and of pip's command line, the paths are joined to a cache folder.
        if not re.fullmatch(r"[A-Za-z0-9][\w.+!-]*", self.version) or not re.fullmatch(r"[\w.-]+", self.package):
            raise ValueError("`package` and `version` must be plain and exact")
        for path in (self.member, *self.files):
            if not _stays_inside(path):
                raise ValueError(f"the path {path!r} leaves its folder")

    @property
    def expected(self) -> dict[str, str]:
        """Relative path in the cache -> sha256."""
        return self.files or {PurePosixPath(self.member).name: self.sha256}

    def member_of(self, relative: str) -> str:
        """Path inside the archive of one of the `expected` files."""
        return f"{self.member}{relative}" if self.files else self.member

    @property
    def folder(self) -> Path:
        """Where the files are kept."""
        from shared.config import settings  # pydantic takes 0.15 s, and --help needs no settings

        return settings().llm_roadmap_home.expanduser().resolve() / "artifacts" / f"{self.name}-{self.version}"

    @property
    def path(self) -> Path:
        """What `fetch` returns: the folder, or the one file in it."""
        return self.folder if self.files else self.folder / PurePosixPath(self.member).name


@dataclass(frozen=True, kw_only=True)
class HubRepo:
    """A repository on the Hugging Face Hub at one commit."""

    name: str
    repo: str
    revision: str
    licence: str
    source: str
    what: str
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError when the revision could move."""
        if not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError("`revision` must be a full 40-digit commit")


Artifact = Package | HubRepo


def _stays_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and not re.search(r"[\\:\0]", path)


def load() -> dict[str, Artifact]:
    """Read the catalogue. Raises UserError that names the entry when one is malformed."""
    try:
        document = tomllib.loads(CATALOG.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the catalogue {CATALOG}: {error}") from None
    return {name: _parse(name, dict(entry)) for name, entry in document.get("artifact", {}).items()}


def _parse(name: str, entry: dict[str, Any]) -> Artifact:
    try:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
            raise ValueError("names are lower-case letters, digits, dots and dashes")
        kind: type[Package] | type[HubRepo] = {"package": Package, "hub": HubRepo}[entry.pop("kind", "package")]
        known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
        unknown = entry.keys() - known.keys()
        missing = [key for key, required in known.items() if required and key not in entry and key != "name"]
        if unknown or missing:
            raise ValueError(f"unknown keys {sorted(unknown)}, missing keys {missing}")
        if kind is HubRepo and "files" in entry:
            entry["files"] = tuple(entry["files"])
        return kind(name=name, **entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{CATALOG}: [artifact.{name}]: {error}") from None


def find(name: str) -> Artifact:
    """Return one catalogue entry. Raises UserError that lists the known names."""
    entries = load()
    if name not in entries:
        raise UserError(f"no artifact is called {name!r}; the catalogue has: {', '.join(entries)}")
    return entries[name]
