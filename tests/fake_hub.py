"""The Hugging Face hub as far as `datasets` asks it, over HTTP on this machine: one folder for each data set."""

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "c0ffee" * 6 + "1234"


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[str]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as the base class calls it
        self.asked.append(f"{self.command} {self.path}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        match unquote(urlparse(self.path).path).strip("/").split("/"):
            case ["api", "datasets", _, name, *rest] if (self.folder / name).is_dir():
                self._about(self.folder / name, rest)
            case ["api", "datasets", *_]:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            case ["datasets", _, name, "resolve", commit, *path] if commit == COMMIT:
                self._file(self.folder.joinpath(name, *path))
            case _:
                self._send(404, b"", {})

    def _about(self, root: Path, rest: list[str]) -> None:
        if rest[:1] == ["revision"] and rest[1:] != [COMMIT]:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        below = root.joinpath(*rest[2:]) if rest[:1] == ["tree"] else root
        if not below.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        files = [_described(root, file) for file in sorted(below.rglob("*")) if file.is_file()]
        names = [{"rfilename": file["path"]} for file in files]
        about = {"id": f"owner/{root.name}", "sha": COMMIT, "private": False, "tags": [], "siblings": names}
        body = about if rest[:1] == ["revision"] else files
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            self._send(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})
        else:
            self._send(200, data, headers)

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _described(root: Path, file: Path) -> dict[str, Any]:
    digest = hashlib.sha1(file.read_bytes()).hexdigest()
    return {"type": "file", "path": file.relative_to(root).as_posix(), "size": file.stat().st_size, "oid": digest}


@contextmanager
def serving(folder: Path) -> Generator[tuple[str, list[str]], None, None]:
    """The address of a hub with the data sets `owner/NAME` of `folder`, and what it was asked for, as it comes."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folder": folder, "asked": asked}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
