"""A stand-in for the Hugging Face hub on this machine: repositories, read and written as its client does.

Models are named ``owner/name``, datasets ``datasets/owner/name``. Who creates one of ``others`` is refused, and gets no
answer for one of ``gone``.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "c0ffee" + "0" * 34


class Hub:
    """Files of each repository, and what was asked of the server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.tokens: set[str] = set()
        self.requests: list[str] = []

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that takes it for the hub."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def add(self, name: str, folder: Path) -> None:
        self.repositories[name] = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }


@contextmanager
def serving() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    _Handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield _Handler.hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self._note(path)
        repo, more = self._repository(path)
        if path.startswith("api/"):
            return self._describe(repo, more)
        files = self.hub.repositories.get(repo, {})
        name = "/".join(more[2:])
        if more[:1] != ["resolve"] or name not in files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound" if files else "RepoNotFound"})
        digest = hashlib.sha256(files[name]).hexdigest()
        return self._send(files[name], {"ETag": f'"{digest}"', "X-Repo-Commit": SHA})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self._note(path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            if name.startswith("gone/"):
                return self.connection.shutdown(SHUT_RDWR)
            if name.startswith("others/"):
                return self._answer(403, b"{}", {"X-Error-Message": "You don't have the rights."})
            if name in self.hub.repositories:
                return self._answer(409, json.dumps({"url": f"{self.hub.address}/{name}"}).encode(), {})
            self.hub.repositories[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            return self._json({"url": f"{self.hub.address}/{name}", "id": name})
        name, (action, *_) = self._repository(path)
        if action == "paths-info":
            asked = parse_qs(body.decode())["paths"]
            return self._json([one for one in self._listed(name) if one["path"] in asked])
        if action == "preupload":
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for one in json.loads(body)["files"]]  # fmt: skip
            return self._json({"files": files})
        if action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.repositories[name][line["value"]["path"]] = content
            found = {"success": True, "commitOid": SHA, "commitUrl": f"{self.hub.address}/{name}/commit/{SHA}"}
            return self._json(found | {"hookOutput": ""})
        return self._answer(404, b"", {})

    def _repository(self, path: str) -> tuple[str, list[str]]:
        """Its name, and the rest of the path."""
        parts = path.removeprefix("api/").split("/")
        if parts[0] == "models":
            parts = parts[1:]
        length = 3 if parts[0] == "datasets" else 2
        return "/".join(parts[:length]), parts[length:]

    def _listed(self, name: str) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path, "size": len(held), "oid": hashlib.sha1(held).hexdigest()}
            for path, held in self.hub.repositories[name].items()
        ]

    def _tree(self, name: str, folder: str, recursive: bool) -> list[dict[str, object]]:
        found, folders = [], set()
        for one in self._listed(name):
            path = str(one["path"])
            if not path.startswith(f"{folder}/" if folder else ""):
                continue
            below = path.removeprefix(folder).strip("/").split("/")
            folders |= {"/".join(filter(None, [folder, *below[:depth]])) for depth in range(1, len(below))}
            if recursive or len(below) == 1:
                found.append(one)
        shown = [
            path for path in sorted(folders) if recursive or path.count("/") == bool(folder) * (folder.count("/") + 1)
        ]
        return [{"type": "directory", "path": path, "size": 0, "oid": SHA} for path in shown] + found

    def _describe(self, name: str, more: list[str]) -> None:
        files = self.hub.repositories.get(name)
        if files is None:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if more[:1] == ["tree"]:
            return self._json(self._tree(name, "/".join(more[2:]), "recursive=true" in self.path.lower()))
        siblings = [{"rfilename": path} for path in files]
        return self._json(
            {
                "id": name,
                "modelId": name,
                "sha": SHA,
                "siblings": siblings,
                "tags": [],
                "private": name in self.hub.private,
            }
        )

    def _note(self, path: str) -> None:
        self.hub.requests.append(f"{self.command} {path}")
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token.removeprefix("Bearer "))

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        """All of it, or the part that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return self._answer(200, body, headers | {"Accept-Ranges": "bytes"})
        begin, end = int(asked[1]), int(asked[2] or len(body) - 1) + 1
        place = {"Content-Range": f"bytes {begin}-{min(end, len(body)) - 1}/{len(body)}"}
        return self._answer(206, body[begin:end], headers | place)

    def _json(self, document: object) -> None:
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
