"""A W&B server on this machine: it answers what a run asks, keeps what a run sends, and can die."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4  # as long as a key is


class FakeWandB:
    """Runs in a thread of its own until `die`.

    Attributes:
        history: by run id, each logged row as the server would keep it.
        asked: names of the queries that came, in order.
        views: workspaces that were saved.
        artifacts: those that were announced; their files are not taken.
        connections: those that are open.
        alive: until it is told to die.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[str] = []
        self.views: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.connections: set[socket.socket] = set()
        fake = self

        class Handler(_Handler):
            owner = fake

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.alive = True
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def die(self) -> None:
        if self.alive:
            self.alive = False
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            for connection in list(self.connections):  # what comes on one that is kept open would be answered still
                hang_up(connection)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else ""
        self.asked.append(name)
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "someone"}}
        run = variables.get("name")
        if name == "RunResumeStatus":
            rows = self.history.get(str(run))
            bucket = rows and {
                "id": "r", "name": run, "summaryMetrics": "{}", "displayName": run, "logLineCount": 0, "config": "{}",
                "historyLineCount": len(rows), "eventsLineCount": 0, "eventsTail": "[]", "tags": [], "notes": "",
                "historyTail": json.dumps([json.dumps(rows[-1])]), "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"model": {**project, "bucket": bucket or None}}
        if name == "UpsertBucket":
            bucket = {
                "id": "r", "name": run, "displayName": run, "description": "", "config": None, "sweepName": None,
                "historyLineCount": 0, "project": project,
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if name in ("Viewer", "GetDefaultEntity"):
            someone = {"id": "u", "entity": "someone", "username": "someone", "email": "", "flags": "{}"}
            return {"viewer": {**someone, "teams": {"edges": []}}}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "CreateArtifact":
            self.artifacts.append(variables["input"])
            return None
        if name == "UpsertView2":
            self.views.append(variables)
            return {"upsertView": {"view": {"id": "v", "name": variables["name"]}, "inserted": True}}
        return None

    def keep(self, run: str, offset: int, lines: list[str]) -> None:
        rows = self.history.setdefault(run, [])
        rows[offset:] = [json.loads(line) for line in lines]


def hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other end was first
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FakeWandB

    def setup(self) -> None:
        super().setup()
        self.owner.connections.add(self.connection)
        if not self.owner.alive:  # it died in between
            hang_up(self.connection)

    def finish(self) -> None:
        self.owner.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is its own."""

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = self.owner.answer(asked["query"], asked.get("variables") or {})
            self._reply({"data": answer} if answer else {"errors": [{"message": "this is only a fake"}]})
            return
        if self.path.endswith("/file_stream"):
            rows = (json.loads(body).get("files") or {}).get("wandb-history.jsonl")
            if rows:
                self.owner.keep(self.path.split("/")[-2], rows["offset"], rows["content"])
        self._reply({})
