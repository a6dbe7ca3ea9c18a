"""placeholder until the run key's own branch is merged"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from ssl_core.train.run import Run

ROOT = Path(__file__).parents[2]


def run_key(run: Run, workers: int, corpus_digest: str, code: str) -> str:
    parts = {"recipe": [repr(run), workers], "corpus": corpus_digest, "code": code}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def code_digest(run: Run) -> str:
    whole = hashlib.sha256()
    for path in sorted((ROOT / "ssl_core").rglob("*.py")):
        whole.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]
