"""What a run's encoder is evaluated with: labelled corpora, settings, known factors; and its last evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.corpus.corpus import Corpus
from components.evaluation.factors import FactorTable
from components.evaluation.features import Split
from components.evaluation.result import Evaluation
from components.steps.context import CorpusSpec, RunContext, StepError
from components.training.run_folder import EVALUATION
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


def last_evaluation(context: RunContext) -> Evaluation:
    """The run's last evaluation.

    Raises:
        StepError: the run has not been evaluated, or its evaluation cannot be read.
    """
    written = context.folder.read(EVALUATION)
    if written is None:
        raise StepError(f"run {context.name} has not been evaluated; `pretext evaluate` comes first")
    try:
        return Evaluation.from_json(written.decode())
    except ValueError as error:  # undecodable bytes as well
        where = context.folder.uri_of(EVALUATION)
        raise StepError(f"{where} is damaged ({error}); `pretext evaluate` writes it anew") from None


def _split(named: CorpusSpec, pinned: CorpusVersion | None) -> Split:
    corpus = Corpus.open(pinned.uri, pinned.version) if pinned else Corpus.open(named.name, named.version)
    return Split(Shards.open(corpus.shards()), corpus.pinned())
