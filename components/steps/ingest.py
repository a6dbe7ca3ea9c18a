"""The sources of a recipe's corpora, or of one corpus, ingested: what is new becomes a version."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from components.ingest.ingest import IngestReport, ingest
from components.ingest.ingest import Progress as Ingested
from components.ingest.sources import SourceOptions
from components.steps.context import CorpusSpec, RunSpec, StepError
from components.steps.progress import Advance, Progress, duration
from components.storage.home import pretext_home
from ssl_core.data.decode import Limits, SampleFormat


def ingest_corpora(spec: RunSpec, progress: Progress) -> dict[str, IngestReport]:
    """All corpora of a recipe that name sources, the unlabelled one first: corpus -> report of its ingest.

    Raises:
        StepError: a sample corpus has not been written yet.
        StorageError, CorpusError, ColumnError: see `components.ingest.ingest.ingest`.
    """
    named = [corpus for corpus in spec.corpora if corpus.sources]
    return {corpus.name: ingest_corpus(corpus, spec.sample_format, spec.limits, progress) for corpus in named}


def ingest_corpus(
    corpus: CorpusSpec,
    sample_format: SampleFormat,
    limits: Limits,
    progress: Progress,
    retry_quarantined: bool = False,
) -> IngestReport:
    """Ingest one corpus. Raises what `ingest_corpora` raises."""
    _require_samples(corpus.sources)

    def show(now: Ingested) -> None:
        figures = {"added": now.added, "quarantined": now.quarantined, "files_per_s": now.rate}
        progress.advance(Advance(f"ingest {corpus.name}", now.added + now.quarantined, None, figures))

    report = ingest(
        corpus.sources,
        corpus.name,
        sample_format=sample_format,
        options=SourceOptions(corpus.labels, corpus.column, limits),
        retry_quarantined=retry_quarantined,
        progress=show,
    )
    progress.say(
        f"ingest {corpus.name}: {report.added:,} added, {report.known:,} known, {report.quarantined:,} quarantined "
        f"in {duration(report.seconds)}; version {report.version}"
    )
    return report


def _require_samples(sources: Sequence[str]) -> None:
    """Raises StepError for a sample corpus that was not written yet, with the command that writes it."""
    samples = pretext_home() / "samples"
    for source in sources:
        made = re.match(rf"{re.escape(str(samples))}/(digits|shapes|photos)(?=/|$)", source)
        if made and not Path(made[0]).exists():
            raise StepError(f"there are no samples at {made[0]}; `pretext samples {made[1]}` writes them")
