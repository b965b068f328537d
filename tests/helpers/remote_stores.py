"""A web server on loopback that lists folders and can be told to fail, and what is left of fetched scans."""

from __future__ import annotations

import base64
import functools
import multiprocessing.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

from fairlung.transforms.remote import PREFIX

USER, PASSWORD, SIGNATURE = "qzxuser", "QZX/PASS@WORD", "QZXSIGNATURE"
SECRETS = (USER, "QZX", base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())


class Web(ThreadingHTTPServer):
    """Serves a folder; what is in ``faults`` fails: {path: "gone", "denied", "torn", "stalls" or "endless"}."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(root)))
        self.faults: dict[str, str] = {}
        self.seen: list[str] = []  # what was left() when a download stalled
        self.ends = Event()
        self.asks_for_login = self.asks_for_signature = False
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if self._allowed():
            super().do_HEAD()

    def do_GET(self) -> None:
        if not self._allowed():
            return
        fault = self.server.faults.get(self.path.partition("?")[0])
        if fault == "gone":
            self.send_error(404)
        elif fault == "torn":
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "stalls":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"begun")
            self.server.seen += left()
            self.server.ends.wait()
        elif fault == "endless":
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):  # who has enough of it hangs up
                for _ in range(1000):
                    self.wfile.write(bytes(1 << 20))
        else:
            super().do_GET()

    def _allowed(self) -> bool:
        path, _, query = self.path.partition("?")
        given = self.headers.get("Authorization", "")
        login = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.server.asks_for_login and given != login:
            self.send_error(401)
        elif self.server.faults.get(path) == "denied" or (
            self.server.asks_for_signature and query != f"X-Amz-Signature={SIGNATURE}"
        ):
            self.send_error(403)
        else:
            return True
        return False


@contextmanager
def web(root: Path) -> Iterator[Web]:
    """A server of a folder for the block."""
    with Web(root) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ends.set()
            server.shutdown()
            thread.join()


def left() -> list[str]:
    """Names of the folders of fetched scans that are there now."""
    return [path.name for path in Path(multiprocessing.util.get_temp_dir()).rglob(f"{PREFIX}*")]
