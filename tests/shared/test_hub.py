"""The Hub path against a loopback server that speaks the calls snapshot_download makes (huggingface_hub 2.4).

GET /api/models/REPO/revision/REV, GET /api/models/REPO/tree/COMMIT, HEAD and GET /REPO/resolve/COMMIT/FILE.

    python -m pytest tests/shared/test_hub.py
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shared import hub
from shared.config import settings
from shared.errors import UserError

REPO, COMMIT = "org/tiny", "a" * 40
ROOT = Path(__file__).resolve().parents[2]


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"config.json": b"{}", "model.safetensors": os.urandom(200_000), "code.py": b"x", "m.bin": b"y"}
        self.cuts: list[int] = []
        self.gated = False
        self.log: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub_, wanted = self.server, self.headers.get("Range")
        path = self.path.partition("?")[0]
        hub_.log.append((self.command, path, wanted))
        if not path.startswith((f"/api/models/{REPO}/", f"/{REPO}/")):
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if hub_.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if match := re.search("/(?:revision|tree)/([^/]+)", path):
            if match[1] not in (COMMIT, "main"):
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            if "/revision/" in path:
                return self.answer(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode())
            return self.answer(200, json.dumps([self.entry(n, d) for n, d in hub_.files.items()]).encode())
        data = hub_.files[path.split(f"/resolve/{COMMIT}/")[1]]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        large = self.command == "GET" and len(data) > 1000
        cut = hub_.cuts.pop(0) if large and hub_.cuts else None
        return self.answer(206 if start else 200, data[start:], headers, cut)

    @staticmethod
    def entry(name: str, data: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    fake = Hub()
    for variable in [v for v in os.environ if v.startswith("HF_") or v.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("LLM_ROADMAP_HOME", str(tmp_path))
    settings.cache_clear()
    yield fake
    settings.cache_clear()
    fake.shutdown()
    fake.server_close()


def test_fetch_at_revision_then_offline(server: Hub) -> None:
    path = hub.hub_snapshot(REPO, COMMIT)
    assert path.name == COMMIT
    assert {p.name for p in path.iterdir()} == {"config.json", "model.safetensors"}  # no code, no pickles
    assert (path / "model.safetensors").read_bytes() == server.files["model.safetensors"]
    assert hub.verify_snapshot(REPO, COMMIT) == []
    server.log.clear()
    assert hub.hub_snapshot(REPO, COMMIT) == path
    assert server.log == []


def test_branch_is_looked_up_and_survives_without_network(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hub.hub_snapshot(REPO)
    assert path.name == COMMIT
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    settings.cache_clear()
    assert hub.hub_snapshot(REPO) == path
    assert "using the copy" in capsys.readouterr().err


def test_resume_after_cut_connection(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client keeps whole chunks of 10 MB; ours is a small file.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    server.cuts = [50_000]
    path = hub.hub_snapshot(REPO, COMMIT)
    assert (path / "model.safetensors").read_bytes() == server.files["model.safetensors"]
    assert ("GET", f"/{REPO}/resolve/{COMMIT}/model.safetensors", "bytes=50000-") in server.log


def test_damaged_file_is_fetched_again(server: Hub) -> None:
    path = hub.hub_snapshot(REPO, COMMIT)
    (path / "model.safetensors").write_bytes(b"short")
    assert hub.hub_snapshot(REPO, COMMIT) == path
    (path / "model.safetensors").write_bytes(b"x" * 200_000)  # the right size: only hashing finds it
    assert "model.safetensors has sha256" in hub.verify_snapshot(REPO, COMMIT)[0]
    assert hub.hub_snapshot(REPO, COMMIT) == path
    assert hub.verify_snapshot(REPO, COMMIT) == []


def test_kill_then_next_run_is_whole(server: Hub, tmp_path: Path) -> None:
    script = (
        "import os, huggingface_hub.file_download as f; from shared.hub import hub_snapshot\n"
        "original = f.http_get\n"
        "def dying(url, file, **k):\n"
        "    original(url, file, **k)\n"
        "    if 'safetensors' in url: os.kill(os.getpid(), 9)\n"
        f"f.http_get = dying; hub_snapshot('{REPO}', '{COMMIT}')"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, timeout=60).returncode == -9
    assert list(tmp_path.rglob("*.incomplete"))
    path = hub.hub_snapshot(REPO, COMMIT)
    assert (path / "model.safetensors").read_bytes() == server.files["model.safetensors"]
    assert not list(tmp_path.rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        (REPO, "b" * 40, "has no revision"),
        (REPO, "nonsense", "has no revision"),
        ("org/unknown", COMMIT, "the Hub has no model"),
        ("not an id", "main", "not an id"),
        ("not an id", COMMIT, "not an id"),
    ],
)
def test_wrong_names(server: Hub, repo: str, revision: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        hub.hub_snapshot(repo, revision)
    assert "\n" not in str(error.value)


def test_gated(server: Hub) -> None:
    server.gated = True
    with pytest.raises(UserError, match="is gated: accept its licence"):
        hub.hub_snapshot(REPO, COMMIT)


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_no_network_is_one_sentence(server: Hub, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    settings.cache_clear()
    with pytest.raises(UserError, match="cannot reach the Hub") as error:
        hub.hub_snapshot(REPO, revision)
    assert "\n" not in str(error.value)


def test_path_escape_is_refused(server: Hub, tmp_path: Path) -> None:
    server.files = {"../../../../evil.json": b"{}"}
    with pytest.raises(UserError, match="refusing"):
        hub.hub_snapshot(REPO, COMMIT)
    assert not list(tmp_path.parent.rglob("evil.json"))


def test_a_model_by_hub_id_answers(server: Hub, tiny_llama: Path) -> None:
    """MODEL=org/name@revision, end to end: the same logits as from the directory it was copied from."""
    import torch

    from shared.models import load

    server.files = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    model = load(f"{REPO}@{COMMIT}", dtype="float32", quiet=True)
    local = load(str(tiny_llama), dtype="float32", quiet=True)
    ids = torch.tensor(model.tokenizer.encode("the cat"))
    hidden = [m.transformer.forward(ids, [m.transformer.new_cache()], [len(ids)]) for m in (model, local)]
    assert torch.equal(*hidden)
    with pytest.raises(UserError, match="nope"):
        load(f"{REPO}@nope", quiet=True)
