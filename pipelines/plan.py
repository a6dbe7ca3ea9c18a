"""What one run of a recipe is about to do: the corpus version that it means, and the run's key and name."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from components.corpus.corpus import Corpus
from components.steps.run_key import code_digest, code_of, run_key
from components.storage.home import pretext_home
from pipelines.config import Recipe

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Plan:
    """What one `pretext run` is about to do.

    Attributes:
        key: hash of what decides the weights.
        name: recipe name and key; names the run in MLflow, on Ray and on disk.
        corpus: the corpus as the recipe names it.
        version: of the corpus.
        digest: of that version's content.
        samples: rows of that version.
        code: digest of the code that the run executes.
        folder: what the run leaves on this machine.
    """

    key: str
    name: str
    corpus: str
    version: int
    digest: str
    samples: int
    code: str
    folder: Path


def plan(recipe: Recipe) -> Plan:
    """Resolve the corpus version and name the run.

    Raises:
        CorpusError: there is no such corpus or version.
    """
    corpus = Corpus.open(recipe.corpus.name)
    version = corpus.version if recipe.corpus.version is None else recipe.corpus.version
    pinned = corpus.at(version)
    digest, code = pinned.digest(), code_digest(code_of(recipe.run()))
    key = run_key(recipe.learning(), corpus=digest, code=code)
    name = f"{recipe.name}-{key[:10]}"
    return Plan(key, name, recipe.corpus.name, version, digest, pinned.count(), code, pretext_home() / "runs" / name)


@functools.cache
def git_commit() -> str | None:
    """Commit of this checkout, with "+changes" where it differs; None in an installation without git."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
