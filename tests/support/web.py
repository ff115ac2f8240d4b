"""Small HTTP servers of the tests' own: pages, issuers, proxies."""

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class WebServer:
    """An HTTP server in threads, at an origin of its own; `get`, `post` and `patch` answer its
    requests.

    Args:
        tls: what it speaks TLS with; None: it speaks none.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.get(self)

            def do_POST(self) -> None:
                owner.post(self)

            def do_PATCH(self) -> None:
                owner.patch(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.origin = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="web server"
        )

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        answer(exchange, b"", status=405)

    def post(self, exchange: BaseHTTPRequestHandler) -> None:
        answer(exchange, b"", status=405)

    def patch(self, exchange: BaseHTTPRequestHandler) -> None:
        answer(exchange, b"", status=405)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Page(WebServer):
    """A page that runs a script and shows messages."""

    def __init__(self, *headers: tuple[str, str]) -> None:
        super().__init__()
        self.script = ""
        self._headers = headers

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        show = "const show = (message) => document.body.append(`got ${message.data.text}. `);"
        page = f"<!doctype html><body><script>{show}\n{self.script}</script></body>"
        answer(exchange, page.encode(), ("Content-Type", "text/html"), *self._headers)


def answer(
    exchange: BaseHTTPRequestHandler, body: bytes, *headers: tuple[str, str], status: int = 200
) -> None:
    """Send a whole response."""
    exchange.send_response(status)
    for name, value in (*headers, ("Content-Length", str(len(body)))):
        exchange.send_header(name, value)
    exchange.end_headers()
    exchange.wfile.write(body)
