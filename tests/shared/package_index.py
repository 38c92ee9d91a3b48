"""A package index on the loopback for test_artifacts.py, with a tiny wheel and a tiny source archive made here.

python -m pytest tests/shared/test_artifacts.py
"""

import base64
import hashlib
import io
import os
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WEIGHTS = os.urandom(300_000)  # random, so that compression keeps it many chunks long
CONFIG = b'{"hidden_size": 8}\n'
METADATA = b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
WHEEL, SDIST = "tiny_model-1.0-py3-none-any.whl", "tiny_data-2.0.tar.gz"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(weights: bytes = WEIGHTS) -> bytes:
    info = "tiny_model-1.0.dist-info"
    files = {
        "tiny_model/model.gguf": weights,
        "tiny_model/folder/config.json": CONFIG,
        "tiny_model/folder/1_Pooling/config.json": CONFIG,
        "tiny_model/folder/not_wanted.txt": b"x",
        f"{info}/METADATA": METADATA,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{n},sha256={base64.urlsafe_b64encode(hashlib.sha256(d).digest()).decode().rstrip('=')},{len(d)}"
        for n, d in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
    return buffer.getvalue()


def make_sdist(trap: Path | None = None) -> bytes:
    """A source archive whose build code leaves a trace when anybody runs it."""
    setup = f"open({str(trap)!r}, 'w')\nraise SystemExit(1)\n".encode()
    files = {"tiny_data-2.0/PKG-INFO": METADATA, "tiny_data-2.0/setup.py": setup, "tiny_data-2.0/data/a.json": CONFIG}
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as tar:
        for name, data in files.items():
            (info := tarfile.TarInfo(name)).size = len(data)
            tar.addfile(info, io.BytesIO(data))
        (link := tarfile.TarInfo("tiny_data-2.0/data/link.json")).type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


class Index(ThreadingHTTPServer):
    """A PEP 503 index. `cuts` holds byte counts after which the next answers break off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {WHEEL: make_wheel(), SDIST: make_sdist()}
        self.cuts: list[int] = []
        self.ranges = True
        self.hashes = True
        self.password = False
        self.log: list[tuple[str, str | None]] = []  # file name, Range header
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def gets(self, name: str = WHEEL) -> list[str | None]:
        return [ranged for file, ranged in self.log if file == name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Index

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.rstrip("/").rsplit("/", 1)[-1]
        index = self.server
        if index.password and not self.headers.get("Authorization"):
            return self.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        if self.path.startswith("/simple/"):
            links = ""
            for file in (f for f in index.files if f.startswith(name.replace("-", "_"))):
                fragment = f"#sha256={sha(index.files[file])}" if index.hashes else ""
                core = ' data-dist-info-metadata="true"' if file.endswith(".whl") else ""
                links += f'<a href="/files/{file}{fragment}"{core}>{file}</a>\n'
            return self.answer(200 if links else 404, links.encode(), {"Content-Type": "text/html"})
        if name.endswith(".metadata"):
            return self.answer(200, METADATA)
        data = index.files[name]
        wanted = self.headers.get("Range")
        index.log.append((name, wanted))
        headers = {"ETag": f'"{sha(data)[:8]}"'}
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and index.ranges else 0
        if start and start >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.answer(206 if start else 200, data[start:], headers, index.cuts.pop(0) if index.cuts else None)

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True
