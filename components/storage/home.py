"""The pretext home: where everything lies that is not named otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def pretext_home() -> Path:
    """Where everything lives that is not named otherwise: PRETEXT_HOME, else ./.pretext."""
    return Path(os.environ.get("PRETEXT_HOME") or ".pretext").absolute()
