"""A web server with the faults of real ones: cut lines, 503, changed files, no Range, pages instead of data."""

import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 1 << 15


@dataclass
class Route:
    """What one path answers.

    ``answers`` are used up one per request: a status, or ``("cut", n)`` which sends n bytes of what was asked for and hangs up; after
    them all is well, or ``always`` holds.
    """

    body: bytes = b""
    etag: str | None = '"1"'
    modified: str | None = None
    kind: str = "application/octet-stream"
    answers: list = field(default_factory=list)
    always: int | None = None
    ranges: bool = True
    if_range: bool = True
    length: bool = True
    pace: float = 0.0
    retry_after: str | None = None
    requests: list = field(default_factory=list)
    """(Range asked for, status) of each request."""
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.close_connection = True
        route = self.server.routes.get(self.path, Route(always=404))
        fault = route.answers.pop(0) if route.answers else route.always
        asked = self.headers.get("Range")
        if isinstance(fault, int):
            route.requests.append((asked, fault))
            self.send_response(fault)
            if route.retry_after:
                self.send_header("Retry-After", route.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, status = 0, 200
        same = not route.if_range or self.headers.get("If-Range") in (None, route.etag, route.modified)
        if asked and route.ranges and same:
            start, status = int(re.match(r"bytes=(\d+)-", asked)[1]), 206
        if start and start >= len(route.body):
            status = 416
        route.requests.append((asked, status))
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(route.body) - 1}/{len(route.body)}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(route.body)}")
        if route.etag:
            self.send_header("ETag", route.etag)
        if route.modified:
            self.send_header("Last-Modified", route.modified)
        self.send_header("Content-Type", route.kind)
        if route.length:
            self.send_header("Content-Length", str(max(0, len(route.body) - start)))
        self.end_headers()
        end = len(route.body) if fault is None else min(start + fault[1], len(route.body))
        try:
            for at in range(start, end, PIECE):
                piece = route.body[at : min(at + PIECE, end)]
                self.wfile.write(piece)
                self.wfile.flush()
                route.sent += len(piece)
                time.sleep(route.pace)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed, as the test wants


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Route] = {}
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def base(self):
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, path, body=b"", **more):
        self.routes[path] = Route(body, **more)
        return self.routes[path]
