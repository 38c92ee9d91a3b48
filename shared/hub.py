"""Model repositories from the Hugging Face Hub, or from the mirror that HF_ENDPOINT names, at one exact commit.

    MODEL=HuggingFaceTB/SmolLM2-360M-Instruct@REVISION     # in the environment of any command

The Hub's own client does the work (per-file locks, resuming, Xet transfers). Added here: a pinned commit that is
complete on disk is used without any request, only the files a language model needs are fetched, and every failure is
one sentence. Code from a repository (`*.py`) and pickles (`*.bin`, `*.pt`) are never fetched: both can run on load.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import UserError
from shared.terminal import say

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

NEEDED = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt", "LICENSE*")
# Second copies of the same weights, in other layouts.
UNWANTED = ("original/*", "onnx/*", "openvino/*", "consolidated*", "*.py", "*.bin", "*.pt", "*.pth")


def hub_snapshot(repo: str, revision: str = "main", files: Sequence[str] | None = None) -> Path:
    """Return the folder with a repository's files at `revision` (commit, branch or tag), downloading what is missing.

    files: glob patterns in place of NEEDED. A full 40-digit commit that is complete on disk needs no network; a branch
    is looked up, and without a network the commit last seen is used.
    Raises UserError: no network, unknown or gated repository, unknown revision, a name that leaves the folder.
    Raises OSError: disk full, no permission.
    """
    pinned = re.fullmatch("[0-9a-f]{40}", revision) is not None
    if pinned and (path := cached_snapshot(repo, revision, files)):
        return path
    import httpx2  # what huggingface_hub 2 talks with; it lets this library's errors through
    from huggingface_hub import HfApi, errors, snapshot_download

    from shared.config import settings

    where = f"{repo}@{revision}"
    token = _token()
    try:
        # The same question snapshot_download asks, but asked once and without 20 s of retries, and its answer is not
        # hidden behind "cannot find a cached snapshot" when the Hub says no.
        HfApi(endpoint=settings().hf_endpoint, token=token).repo_info(repo, revision=revision)
        with _locked(repo):
            return Path(
                snapshot_download(
                    repo,
                    revision=revision,
                    endpoint=settings().hf_endpoint,
                    token=token,
                    cache_dir=_cache_dir(),
                    allow_patterns=list(files or NEEDED),
                    ignore_patterns=None if files else list(UNWANTED),
                )
            )
    except errors.GatedRepoError:
        raise UserError(
            f"{repo} is gated: accept its licence on its page and set HF_TOKEN to a token of that account", exit_code=1
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no revision {revision!r}; give a commit, branch or tag that exists") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the Hub has no model {repo!r} (a private one needs HF_TOKEN)") from None
    except (errors.HFValidationError, ValueError) as error:
        raise UserError(f"refusing {where}: {str(error).splitlines()[0]}") from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "an error"
        raise UserError(f"the Hub answered {code} for {where}; try again later", exit_code=1) from None
    except (httpx2.HTTPError, errors.LocalEntryNotFoundError, ConnectionError):
        if not pinned and (path := cached_snapshot(repo, revision, files)):
            say(f"cannot reach the Hub; using the copy of {where} on disk (commit {path.name[:12]})")
            return path
        raise UserError(
            f"cannot reach the Hub to download {where}: check the network, HF_ENDPOINT and HF_HUB_OFFLINE, "
            "then run the same command again",
            exit_code=1,
        ) from None


def cached_snapshot(repo: str, revision: str, files: Sequence[str] | None = None) -> Path | None:
    """Return the snapshot's folder if every needed file is on disk with its right size, else None; no request is made.

    A file of another size (a damaged disk, an edit) is deleted, so that the next download brings it back.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        path = Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=_cache_dir(),
                allow_patterns=list(files or NEEDED),
                ignore_patterns=None if files else list(UNWANTED),
                local_files_only=True,
            )
        )
    except (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError):
        return None
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is not a Hub id: {str(error).splitlines()[0]}") from None
    damaged = [file for entry in _tree(repo, path, files) if not _right_size(file := path / entry.path, entry.size)]
    for file in damaged:
        say(f"{file.name} of {repo} in the cache is damaged; fetching it again")
        file.resolve().unlink(missing_ok=True)  # the blob behind the link
        file.unlink(missing_ok=True)
    return None if damaged else path


def verify_snapshot(repo: str, revision: str, files: Sequence[str] | None = None) -> list[str]:
    """Hash a snapshot's files and return what is wrong, one sentence each.

    The cache names each blob by its hash as the Hub announced it: sha256 for large files, git's sha1 for small ones.
    """
    path = cached_snapshot(repo, revision, files)
    if path is None:
        return ["not fetched"]
    problems = []
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        blob = file.resolve()
        kind = {64: "sha256", 40: "sha1"}.get(len(blob.name)) if file.is_symlink() else None
        if kind is None:  # a platform without links: only the size is known, and that was right
            continue
        digest = hashlib.new(kind, b"" if kind == "sha256" else b"blob %d\0" % blob.stat().st_size)
        with blob.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != blob.name:
            problems.append(f"{file.relative_to(path)} has {kind} {digest.hexdigest()}, not {blob.name}")
            blob.unlink()
            file.unlink()
    return problems


def _tree(repo: str, path: Path, files: Sequence[str] | None) -> "list[RepoFile]":
    """The needed files of a snapshot as the Hub listed them; empty when an older client made the cache."""
    from huggingface_hub import errors, get_cached_repo_tree
    from huggingface_hub.utils._paths import filter_repo_objects

    try:
        tree = get_cached_repo_tree(repo, revision=path.name, cache_dir=_cache_dir())
    except errors.CachedRepoTreeNotFoundError:
        return []
    ignore = None if files else list(UNWANTED)
    return list(
        filter_repo_objects(tree, allow_patterns=list(files or NEEDED), ignore_patterns=ignore, key=lambda f: f.path)
    )


def _right_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _cache_dir() -> Path | None:
    """Our own cache, or None for the Hub client's when the user has told it where to keep things."""
    if os.environ.get("HF_HOME") or os.environ.get("HF_HUB_CACHE"):
        return None
    from shared.config import settings

    return settings().llm_roadmap_home.expanduser().resolve() / "hub"


def _token() -> str | None:
    from shared.config import settings

    secret = settings().hf_token
    return secret.get_secret_value() if secret else None  # None: the client looks for the user's own login


@contextmanager
def _locked(repo: str) -> Iterator[None]:
    """Let one of our processes at a time download a repository, and clear away what killed ones left."""
    cache = _cache_dir()
    if cache is None:  # shared with programs that do not know our lock: an .incomplete file may be a living download
        yield
        return
    from filelock import FileLock

    folder = cache / f"models--{repo.replace('/', '--')}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        for leftover in folder.glob("blobs/*.incomplete"):
            leftover.unlink(missing_ok=True)
        yield
