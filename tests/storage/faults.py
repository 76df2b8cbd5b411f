"""A proxy before a store that fails on demand: refuses, cuts connections, answers slowly."""

import contextlib
import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit


class Proxy:
    """Passes requests on to a store at `address`.

    fail: returns what to do with a request, by its number and path: a status to answer, "cut" to
    close the connection, a number of seconds to wait first, or None. log: (method, path) of each.
    """

    def __init__(self, target: str):
        self.target = urlsplit(target)
        self.fail = lambda number, path: None
        self.log: list[tuple[str, str]] = []
        self.address = ""

    def decide(self, method: str, path: str):
        self.log.append((method, path))
        return self.fail(len(self.log), path)


def _handler(proxy: Proxy) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._body()
            fault = proxy.decide(self.command, self.path)
            if fault == "cut":
                self.close_connection = True
                return
            if isinstance(fault, float):
                time.sleep(fault)
            if isinstance(fault, int):
                self._answer(fault, {"Content-Type": "text/plain"}, b"try again later")
                return
            upstream = http.client.HTTPConnection(proxy.target.hostname, proxy.target.port)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            upstream.request(self.command, self.path, body, headers)
            with upstream.getresponse() as answer:
                kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
                self._answer(answer.status, kept, answer.read())

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


_HOP = ("transfer-encoding", "content-length", "connection", "host")


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed has closed its connection."""


@contextlib.contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """Runs a proxy before the store at `target`."""
    proxy = Proxy(target)
    server = _Server(("127.0.0.1", 0), _handler(proxy))
    proxy.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
