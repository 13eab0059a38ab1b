"""A small hub of models over HTTP: repositories from folders, with commits, hashes and ranges, as the client asks."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Its URL, and what was asked of it; ``break_after`` cuts the next large answer off after so many bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, str, str | None]] = []
        self.break_after: int | None = None
        self.url = ""


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """Serve the folders ``ORGANISATION/NAME`` below a root."""
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(head=True)

        def do_GET(self) -> None:
            self.answer(head=False)

        def answer(self, *, head: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
                self.described(found[1])
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.+", path):
                self.listed(found[1])
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(hub.root / found[1] / found[3], head=head)
            elif (hub.root / path.lstrip("/")).is_file():
                self.file(hub.root / path.lstrip("/"), head=head)
            else:
                self.send_error(404)

        def json(self, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def described(self, name: str) -> None:
            if not (hub.root / name).is_dir():
                self.send_error(404)
                return
            files = [{"rfilename": str(p.relative_to(hub.root / name))} for p in sorted((hub.root / name).rglob("*.*"))]
            self.json({"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "private": False, "tags": [],
                       "downloads": 0, "likes": 0})  # fmt: skip

        def listed(self, name: str) -> None:
            folder = hub.root / name
            self.json([{"type": "file", "path": str(p.relative_to(folder)), "size": p.stat().st_size, "oid": "0" * 40}
                       for p in sorted(folder.rglob("*.*"))])  # fmt: skip

        def file(self, path: Path, *, head: bool) -> None:
            if not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = path.read_bytes()
            start = int(re.findall(r"\d+", self.headers.get("Range") or "0")[0])
            self.send_response(206 if self.headers.get("Range") else 200)
            if self.headers.get("Range"):
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.end_headers()
            if head:
                return
            rest = data[start:]
            if hub.break_after is not None and len(rest) > hub.break_after:
                rest, hub.break_after = rest[: hub.break_after], None
                self.wfile.write(rest)
                self.wfile.flush()
                self.connection.close()
                return
            self.wfile.write(rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
