"""The errors of a tracker as one sentence each: what, where, how to mend it; no stack of exceptions, no secrets.

They are recognised by their text: MLflow wraps what requests, urllib3 and SQLAlchemy raise into one class of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ssl_core.errors import PretextError

ELSEWHERE = "name another one under tracking.uri or in MLFLOW_TRACKING_URI"
CREDENTIALS = "check MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
SILENT = "Connection refused|No route to host|unreachable|Connection reset|RemoteDisconnected|Connection aborted"
OTHER_MLFLOW = "back it up and run `mlflow db upgrade`, or use that version"
KNOWN = (
    ("Failed to resolve|Name or service not known", "names an unknown host", f"correct it, or {ELSEWHERE}"),
    ("timed out", "does not answer in time", f"see whether it is overloaded, or {ELSEWHERE}"),
    ("SSLError|SSL:", "does not speak TLS, or its certificate is not trusted", f"mend that, or {ELSEWHERE}"),
    ("UNAUTHENTICATED|PERMISSION_DENIED|error code 40[13]", "refuses access", CREDENTIALS),
    ("error code 404|not in a valid JSON format", "is no MLflow server, or not at that path", ELSEWHERE),
    (r"too many (5\d\d) error|error code (5\d\d)", "fails with HTTP status {}", "its log says why"),
    (SILENT, "does not answer", f"start it, or {ELSEWHERE}"),
    ("file is not a database|malformed", "is no SQLite database, or damaged", f"move it away, or {ELSEWHERE}"),
    ("unable to open database file|disk I/O error", "cannot be opened", f"check folder and disk, or {ELSEWHERE}"),
    ("readonly database", "may not be written", f"check its mode, or {ELSEWHERE}"),
    ("database is locked", "is locked by another process", "see which one holds it; the same command tries again"),
    ("database or disk is full", "has no space left", f"free some, or {ELSEWHERE}"),
    ("No module named '([^']+)'", "needs the Python package {}", f"install it, or {ELSEWHERE}"),
    ("out-of-date database schema|Can't locate revision", "was written by another version of MLflow", OTHER_MLFLOW),
)
"""Pattern in the text of an error, what it means, how to mend it."""
FOREIGN = ("mlflow", "sqlalchemy", "sqlite3", "requests", "urllib3")


class TrackingError(PretextError, ValueError):
    """The tracker cannot be used; the message says what, where and how to mend it."""


def without_secrets(uri: str) -> str:
    """A tracking URI without user, password and query."""
    uri, parts = uri.partition("?")[0], urlsplit(uri)
    return uri.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1) if parts.netloc else uri


def explain(error: BaseException, uri: str) -> str:
    """An error of MLflow or its libraries as one sentence; the error's first line if it is none of `KNOWN`."""
    if isinstance(error, TrackingError):
        return str(error)
    text = f"{getattr(error, 'error_code', '')} {error}"
    for words, what, mend in KNOWN:
        if found := re.search(words, text):
            return f"{without_secrets(uri)} {what.format(*filter(None, found.groups()))}; {mend}"
    secret = urlsplit(uri).netloc.rpartition("@")[0]
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return first.replace(f"{secret}@", "") if secret else first


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turns whatever MLflow and its libraries raise inside the block into a TrackingError."""
    try:
        yield
    except Exception as error:
        foreign = type(error).__module__.partition(".")[0] in FOREIGN or isinstance(error, ModuleNotFoundError)
        if not foreign:
            raise
        raise TrackingError(explain(error, uri)) from error
