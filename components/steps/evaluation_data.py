"""The data for evaluating a run's encoder: versions of the labelled corpora, settings of the probes, known factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.corpus.corpus import Corpus
from components.evaluation.factors import FactorTable
from components.evaluation.features import Split
from components.steps.context import CorpusSpec, RunContext
from ssl_core.data.shards import Shards

if TYPE_CHECKING:
    from ssl_core.types import CorpusVersion


def evaluated_with(context: RunContext) -> dict[str, Any]:
    """Splits, settings and factors, as `evaluate` and `evaluation_set` of components.evaluation.evaluate take them.

    Raises:
        CorpusError, StorageError, FactorsError: one of them cannot be read.
    """
    spec = context.spec
    if spec.probe_train and spec.probe_test:
        train: Split = _split(spec.probe_train, context.probe_train)
        test: Split | None = _split(spec.probe_test, context.probe_test)
    else:
        train, test = _split(spec.corpus, context.corpus), None
    return {"train": train, "test": test, "settings": spec.settings, "factors": factors_of(context.spec.factors)}


def factors_of(uri: str | None) -> FactorTable | None:
    """The known factors of the evaluated samples; None if the recipe names no file of factors."""
    return FactorTable.read(uri) if uri else None


def _split(named: CorpusSpec, pinned: CorpusVersion | None) -> Split:
    corpus = Corpus.open(pinned.uri, pinned.version) if pinned else Corpus.open(named.name, named.version)
    return Split(Shards.open(corpus.shards()), corpus.pinned())
