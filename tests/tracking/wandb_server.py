"""As much of a W&B server as a client needs to make a run, to send its history, and to resume it."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Keeps the lines of every run's history where the client says they belong, as W&B does.

    Attributes:
        history: the rows of each run by its id.
        is_finished: the runs that have finished.
        described: notes and tags, each time that a client gave them.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.is_finished: set[str] = set()
        self.described: list[tuple[str, list[str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What GraphQL is answered."""
        project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "me"}}
        match operation:
            case "RunResumeStatus":
                rows = self.history.get(variables["name"])
                return {"model": {**project, "bucket": None if rows is None else _bucket(variables["name"], rows)}}
            case "UpsertBucket":
                rows = self.history.setdefault(variables["name"], [])
                if variables.get("notes") or variables.get("tags"):
                    self.described.append((variables["notes"], variables["tags"]))
                bucket = {**_bucket(variables["name"], rows), "project": project, "sweepName": None}
                return {"upsertBucket": {"bucket": bucket, "inserted": not rows}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case _:
                return {}

    def stream(self, run_id: str, content: dict[str, Any]) -> None:
        """Take a piece of a run's file stream."""
        if history := content.get("files", {}).get("wandb-history.jsonl"):
            rows, at = self.history[run_id], history["offset"]
            rows[at : at + len(history["content"])] = [json.loads(line) for line in history["content"]]
        if content.get("complete"):
            self.is_finished.add(run_id)


def _bucket(run_id: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": run_id,
        "name": run_id,
        "displayName": "run",
        "summaryMetrics": "{}",
        "config": "{}",
        "tags": [],
        "notes": "",
        "logLineCount": 0,
        "eventsLineCount": 0,
        "eventsTail": "[]",
        "historyLineCount": len(rows),
        "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
        "wandbConfig": '{"t": 1}',  # says that the run was begun
    }


class _Requests(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send({})

    def do_PUT(self) -> None:
        self._body()
        self._send({})

    def do_POST(self) -> None:
        content = json.loads(self._body())
        if self.path == "/graphql":
            answer = {"data": self.server.answer(content["operationName"], content["variables"])}
        else:
            self.server.stream(self.path.split("/")[-2], content)
            answer = {}
        self._send(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        return gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body

    def _send(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def served(server: Server) -> Iterator[Server]:
    """Have it answer, in a thread."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
