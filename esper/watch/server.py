"""The HTTP server of `esper watch`: loopback only, read-only, and only for those who know its token."""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from esper.errors import EsperError
from esper.report import run_page
from esper.tracking.journal import strict
from esper.watch.content import details, summary
from esper.watch.follow import Folder

__all__ = ["WatchServer"]

_HOSTS = frozenset({"127.0.0.1", "localhost"})
"""Names in the Host header. Another one means that a foreign page had its own name resolved to this machine."""
_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # an address holds the token
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HTML, _JSON = "text/html; charset=utf-8", "application/json"

Answer = tuple[str, str]
"""Content type and text."""


class WatchServer(ThreadingHTTPServer):
    """Serve the page over the runs below a folder.

    Args:
        folder: it is only read.
        port: 0 is any free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, *, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.runs = Folder(folder)
        self.token = secrets.token_urlsafe(16)
        environment = run_page.template_environment()
        self.files = {
            "": (_HTML, environment.get_template("watch.html.j2").render(folder=str(folder))),
            "style.css": ("text/css", environment.get_template("style.css.j2").render()),
            "plot.js": ("text/javascript", str(environment.globals["script"])),
            "watch.js": ("text/javascript", (Path(__file__).parent / "watch.js").read_text(encoding="utf-8")),
        }

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is no error."""

    def answer(self, path: str, since: int) -> Answer | None:
        """What stands at a path behind the token; None: nothing."""
        if path in self.files:
            return self.files[path]
        kind, _, number = path.partition("/")
        if kind == "runs" and not number:
            with self.runs.lock:
                return _JSON, _dumped(self._runs(since))
        if kind not in ("run", "report") or not number.isascii() or not number.isdecimal() or len(number) > 9:
            return None
        if int(number) >= len(self.runs.runs):
            return None
        if kind == "report":
            return _HTML, run_page.render(self.runs.runs[int(number)].run_dir)
        with self.runs.lock:
            run = self.runs.detailed(int(number))
            content = {} if run.version == since else details(run.record)
            return _JSON, _dumped({"version": run.version, **content})

    def _runs(self, since: int) -> dict[str, Any]:
        version, changed = self.runs.changes(since)
        rows = [{"number": n, **summary(run.record, changed_s=run.changed_s)} for n, run in changed]
        return {"version": version, "runs": rows}


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "esper", ""
    timeout = 60

    def do_GET(self) -> None:
        host = self.headers.get("Host", "")
        if urlsplit(f"//{host}").hostname not in _HOSTS:
            return self._send(HTTPStatus.FORBIDDEN, ("text/plain", "Use the address that esper watch printed.\n"))
        url = urlsplit(self.path)
        token, _, path = url.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return self._send(HTTPStatus.NOT_FOUND, ("text/plain", "Use the address that esper watch printed.\n"))
        since = parse_qs(url.query).get("since", ["0"])[0]
        try:
            answer = self.server.answer(path, int(since) if since.isascii() and since.isdecimal() else 0)
        except EsperError as error:  # a damaged journal, of which only the list shows what can be read
            return self._send(HTTPStatus.CONFLICT, ("text/plain", f"{error}\n"))
        if answer is None:
            return self._send(HTTPStatus.NOT_FOUND, ("text/plain", "There is nothing here.\n"))
        return self._send(HTTPStatus.OK, answer, is_report=path.startswith("report/"))

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: HTTPStatus, answer: Answer, *, is_report: bool = False) -> None:
        content = answer[1].encode(errors="replace")
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if not is_report:  # a report has a policy of its own
            self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Content-Type", answer[0])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests hold the token."""


def _dumped(content: Any) -> str:
    return json.dumps(strict(content), separators=(",", ":"), allow_nan=False)
