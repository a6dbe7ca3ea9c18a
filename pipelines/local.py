"""The pipeline in one process: ingest -> pretrain -> evaluate -> register, each step also alone.

A step leaves what the next one needs in the run folder (model/, judgement.json, report.html), so that it can be repeated
alone, and a run that was stopped goes on where it stood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.corpus import pretext_home
from components.ingest import IngestReport
from pipelines.config import CorpusSection, LabelledSection, Recipe

if TYPE_CHECKING:
    pass


class AlreadyRunningError(RuntimeError):
    """Another process holds the run."""


def sources_of(section: CorpusSection | LabelledSection) -> list[str]:
    """The section's sources with {home} put in."""
    return [source.replace("{home}", str(pretext_home())) for source in section.sources]


def ingest_step(recipe: Recipe) -> dict[str, IngestReport]:
    """Ingest the sources of the recipe's corpora, the unlabelled one first.

    Raises:
        StorageError: a source or the corpus cannot be read or written.
    """
    sections = [recipe.corpus, recipe.evaluate.train, recipe.evaluate.test]
    reports: dict[str, IngestReport] = {}
    for section in sections:
        if section is not None and section.sources:
            labels = section.labels if isinstance(section, LabelledSection) else None
            column = section.column if isinstance(section, CorpusSection) else None
            reports[section.name] = ingest_into(recipe, section.name, sources_of(section), labels, column)
    return reports
