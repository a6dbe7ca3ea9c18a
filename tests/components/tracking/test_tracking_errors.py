"""Trackers that cannot be used, each a real one: what the user is told of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from components.registry.fetch import fetch
from components.tracking.errors import TrackingError, tracking_errors, without_secrets
from components.tracking.store import connect_tracking
from components.tracking.tracker import Tracker, close_stale_runs

Ailing = tuple[str, str]
HTTP = {
    "HTTP 401": (401, b"You are not authenticated", "refuses access"),
    "HTTP 403": (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "refuses access"),
    "HTTP 404": (404, b"<html>nothing here</html>", "is no MLflow server"),
    "HTTP 502": (502, b"<html>Bad\ngateway</html>", "fails with HTTP status 502"),
    "a page": (200, b"<html>hello</html>", "is no MLflow server"),
    "silence": (0, b"", "does not answer in time"),
}


def serve(status: int, body: bytes) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.reply()

        def reply(self) -> None:
            if not status:
                time.sleep(3)
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(params=["nobody there", "no such host", "no TLS", "no database", "a folder", *HTTP])
def ailing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ailing]:
    """URI of a tracker that cannot be used, and what is to be said of it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    (tmp_path / "text.db").write_bytes(b"not a database at all" * 100)
    plain = {
        "nobody there": ("http://anna:secret@127.0.0.1:1", "does not answer; start it"),
        "no such host": ("http://anna:secret@no-such-host.invalid:5000", "names an unknown host"),
        "no database": (f"sqlite:///{tmp_path}/text.db", "is no SQLite database"),
        "a folder": (f"sqlite:///{tmp_path}", "cannot be opened"),
    }
    if request.param in plain:
        yield plain[request.param]
        return
    status, body, said = HTTP.get(request.param, (200, b"", "does not speak TLS"))
    server = serve(status, body)
    scheme = "https" if request.param == "no TLS" else "http"
    yield f"{scheme}://anna:secret@127.0.0.1:{server.server_port}", said
    server.shutdown()
    server.server_close()


ASKED: list[Callable[[str, Path], object]] = [
    lambda uri, folder: fetch("models:/encoder@champion", folder, uri),
    lambda uri, folder: close_stale_runs(uri),
]


def is_plain(sentence: str, uri: str, said: str) -> bool:
    raw = ("HTTPConnectionPool", "sqlalche", "sqlite3.", "error code", "<html>", "secret", "\n")
    return (
        f"{without_secrets(uri)} {said}" in sentence and ";" in sentence and not any(part in sentence for part in raw)
    )


@pytest.mark.parametrize("ask", ASKED, ids=["fetch", "close_stale_runs"])
def test_it_is_one_sentence_with_place_and_mending(
    ailing: Ailing, ask: Callable[[str, Path], object], tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as told:
        ask(ailing[0], tmp_path / "m")
    assert is_plain(str(told.value), *ailing), told.value


def test_a_run_says_the_same_and_goes_on_unless_waiting_is_in_vain(ailing: Ailing, tmp_path: Path) -> None:
    def run() -> str:
        return Tracker("key", tmp_path / "run", uri=ailing[0], system_metrics=0, wait=10).close(seconds=0.1)

    if ailing[1] == "refuses access":
        with pytest.raises(TrackingError) as told:
            run()
        assert is_plain(str(told.value), *ailing), told.value
    else:
        left = run()
        assert "records of this run wait" in left and is_plain(left, *ailing), left


def test_what_mlflow_itself_says_passes_in_its_own_words(tmp_path: Path) -> None:
    client, uri = connect_tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(TrackingError, match="id=none not found"), tracking_errors(uri):
        client.get_run("none")
    with pytest.raises(ZeroDivisionError), tracking_errors(uri):
        _ = 1 / 0


def test_a_uri_is_shown_without_its_secrets() -> None:
    assert without_secrets("postgresql+psycopg://anna:secret@db.example:5432/mlflow?password=x") == (
        "postgresql+psycopg://db.example:5432/mlflow"
    )
    assert without_secrets("sqlite:////data/a@b.db") == "sqlite:////data/a@b.db"
