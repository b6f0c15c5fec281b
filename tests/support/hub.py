"""A server on this host that answers as the Hugging Face hub does, and counts what it sends.

hub = Hub(Answers({("some/model", "main"): folder}))
subprocess.run(command, env=environment(hub, cache))
hub.sent()
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = re.compile(r"/(cdn/)?([\w-]+/[\w-]+)/resolve/([\w.-]+)/(.+)")
API = re.compile(r"/api/models/([\w-]+/[\w-]+)(?:/revision/([\w.-]+))?(?:\?.*)?")
LARGE = (".safetensors", ".bin", ".gguf")  # kept by git-lfs
SENT_AT_ONCE = 1 << 16


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0


@dataclass
class Answers:
    """What the server does: repositories by (id, revision), and how it differs from a hub in good order."""

    repos: dict[tuple[str, str], Path] = field(default_factory=dict)
    commits: dict[tuple[str, str], str] = field(default_factory=dict)  # COMMIT for those that are not in it
    status: int = 200
    code: str = ""  # X-Error-Code
    failing: str = ""  # the files that alone get `status`; "": all
    methods: tuple[str, ...] = ("GET", "HEAD")  # that get `status`
    ignores_ranges: bool = False
    cdn: str = ""  # where .safetensors redirect to, as large files do
    xet: bool = False  # .safetensors are said to be in xet, whose servers nobody answers for
    listing: Any = None  # instead of the list of files
    dies: dict[str, list[int]] = field(default_factory=dict)  # bytes after which the next answers of a file break off
    after: dict[str, Callable[[], None]] = field(default_factory=dict)  # what happens once a file was sent

    def folder(self, repo: str, revision: str) -> Path | None:
        """Where the files of a revision, or of a commit that one stands for, are."""
        named = next((key for key, commit in self.commits.items() if key[0] == repo and commit == revision), None)
        if named is None and revision == COMMIT and (repo, "main") not in self.commits:
            named = (repo, "main")
        return self.repos.get((repo, revision)) or self.repos.get(named or ("", ""))

    def commit(self, repo: str, revision: str) -> str:
        return revision if len(revision) == 40 else self.commits.get((repo, revision), COMMIT)


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answers: Answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.log = answers, list[Request]()
        self.url = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def sent(self) -> dict[str, int]:
        """Bytes of bodies by file name."""
        total: Counter[str] = Counter()
        for request in self.log:
            total[request.path.rpartition("/")[2]] += request.sent
        return dict(total)

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        answers = self.server.answers
        byte_range = self.headers["Range"]
        self.request_ = Request(self.command, self.path, byte_range, self.headers["Authorization"])
        self.server.log.append(self.request_)
        self.commit = COMMIT
        if api := API.fullmatch(self.path):
            return self._list(api[1], api[2] or "main")
        match = URL.fullmatch(self.path)
        if match is None:
            return self._error(404, "RepoNotFound")
        cdn, repo, revision, name = match.groups()
        if answers.status != 200 and name.endswith(answers.failing) and self.command in answers.methods:
            return self._error(answers.status, answers.code)
        folder = answers.folder(repo, revision)
        if folder is None:
            return self._absent(repo)
        self.commit = answers.commit(repo, revision)
        path = folder / name
        if not path.is_file():
            return self._error(404, "EntryNotFound")
        size = path.stat().st_size
        tag = {"ETag": f'"{etag(path)}"'} if self.command == "HEAD" else {}
        if answers.cdn and not cdn and name.endswith(".safetensors"):
            linked = {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{etag(path)}"'} if tag else {}
            return self._head(302, {"Location": f"{answers.cdn}/cdn{self.path}", "Content-Length": "0"} | linked)
        if answers.xet and name.endswith(".safetensors"):
            route = f"{self.server.url}/api/models/{repo}/xet-read-token/{revision}"
            tag |= {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": route}
        start, stop, status, extra = 0, size, 200, tag
        if byte_range and not answers.ignores_ranges:
            low, high = re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range).groups()  # type: ignore[union-attr]
            start, stop, status = int(low), min(int(high or size) + 1, size), 206
            if start >= size:
                return self._error(416, "")
            extra["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._head(status, {"Content-Length": str(stop - start), "Accept-Ranges": "bytes"} | extra)
        if self.command == "GET":
            self._send(path, start, stop)

    def _list(self, repo: str, revision: str) -> None:
        """The answer of /api/models, with ?blobs=true."""
        answers = self.server.answers
        if answers.status != 200 and not answers.failing:
            return self._error(answers.status, answers.code)
        folder = answers.folder(repo, revision)
        if folder is None:
            return self._absent(repo)
        files = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            size, name = path.stat().st_size, str(path.relative_to(folder))
            files.append({"rfilename": name, "size": size, "blobId": etag(path)})
            if name.endswith(LARGE):
                files[-1] |= {"blobId": "0" * 40, "lfs": {"size": size, "sha256": etag(path), "pointerSize": 130}}
        listing = {"id": repo, "sha": answers.commit(repo, revision), "siblings": files}
        body = json.dumps(listing if answers.listing is None else answers.listing).encode()
        self._head(200, {"Content-Length": str(len(body)), "Content-Type": "application/json"})
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"X-Repo-Commit": self.commit} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _absent(self, repo: str) -> None:
        known = any(repo == name for name, _ in self.server.answers.repos)
        self._error(404, "RevisionNotFound" if known else "RepoNotFound")

    def _error(self, status: int, code: str) -> None:
        self._head(status, {"Content-Length": "0"} | ({"X-Error-Code": code} if code else {}))

    def _send(self, path: Path, start: int, stop: int) -> None:
        dies = self.server.answers.dies.get(path.name)
        if dies:
            stop, self.close_connection = min(stop, start + dies.pop(0)), True
        with path.open("rb") as stream:
            stream.seek(start)
            try:
                for at in range(start, stop, SENT_AT_ONCE):
                    self.request_.sent += self.wfile.write(stream.read(min(SENT_AT_ONCE, stop - at)))
            except ConnectionError:  # the client has read enough
                self.close_connection = True
        self.server.answers.after.pop(path.name, lambda: None)()


def etag(path: Path) -> str:
    """The name of a file's content: what git-lfs calls it where that has the file, otherwise as git would."""
    return _digest(path, path.stat().st_size, path.stat().st_mtime_ns)


@lru_cache
def _digest(path: Path, size: int, changed: int) -> str:
    large = path.name.endswith(LARGE)
    return (hashlib.sha256 if large else hashlib.sha1)(path.read_bytes()).hexdigest()


def environment(hub: Hub, cache: Path, **more: str) -> dict[str, str]:
    """A child's: this hub, this cache, and nothing of the user's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return (
        kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"} | more
    )
