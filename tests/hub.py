"""A stand-in for the Hugging Face hub on this machine: repositories of models, read and written as its client does."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

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
    Thread(target=server.serve_forever, daemon=True).start()
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
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            return self._describe("/".join(parts[2:4]), parts[4:])
        files = self.hub.repositories.get("/".join(parts[:2]), {})
        name = "/".join(parts[4:])
        if parts[2:3] != ["resolve"] or name not in files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound" if files else "RepoNotFound"})
        digest = hashlib.sha256(files[name]).hexdigest()
        return self._answer(200, files[name], {"ETag": f'"{digest}"', "X-Repo-Commit": SHA})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self._note(path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = path.split("/")
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            if name in self.hub.repositories:
                return self._answer(409, json.dumps({"url": f"{self.hub.address}/{name}"}).encode(), {})
            self.hub.repositories[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            return self._json({"url": f"{self.hub.address}/{name}", "id": name})
        name, action = "/".join(parts[2:4]), parts[4]
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

    def _describe(self, name: str, more: list[str]) -> None:
        files = self.hub.repositories.get(name)
        if files is None:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if more[:1] == ["tree"]:
            return self._json(
                [{"type": "file", "path": path, "size": len(held), "oid": hashlib.sha1(held).hexdigest()}
                 for path, held in files.items()]
            )  # fmt: skip
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
