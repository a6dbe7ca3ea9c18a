"""What a reader of an evaluation should know beside its numbers, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from components.evaluation.metrics import ACCURACY, MEASURES, probes
from components.evaluation.references import ENCODER
from components.evaluation.result import Factor, Pretext, Row, best_row, pretext_samples

_NEAR_CHANCE = 1.08


def notes(
    rows: Sequence[Row], pretext: Mapping[str, Pretext], factors: Mapping[str, Factor], has_labels: bool
) -> Iterator[str]:
    """The notes on an evaluation; the arguments are as in `Evaluation`."""
    accuracy = pretext.get(ACCURACY.key)
    if accuracy and accuracy.chance is not None and accuracy.low <= accuracy.chance * _NEAR_CHANCE:
        yield (
            f"The pretext task is answered at chance on {pretext_samples(has_labels)} ({ACCURACY.text(accuracy.mean)}, "
            f"the chance level is {ACCURACY.text(accuracy.chance)}): either these samples do not hold the answer, such "
            "as rotated pictures of things without an upright, or the training was too short; try another task or "
            "train longer."
        )
    if not has_labels:
        *first, last = (measure.title for measure in MEASURES)
        yield f"There was no labelled set, so there are no accuracies, only {', '.join(first)} and {last}."
    ours = best_row(rows, ENCODER)
    for source in dict.fromkeys(row.source for row in rows if row.source != ENCODER):
        theirs = best_row(rows, source)
        if ours and theirs:
            worse = [p.column for p in probes(ours.scores) if ours.scores[p.key].mean < theirs.scores[p.key].mean]
            if worse:
                yield f"The encoder scores below {theirs.name} on {', '.join(worse)}."
    yield from lost_factors(factors)


def lost_factors(factors: Mapping[str, Factor]) -> Iterator[str]:
    """A sentence for each reference that knows some factors significantly better than the encoder."""
    for source in dict.fromkeys(source for factor in factors.values() for source in factor.known if source != ENCODER):
        lost = [
            name
            for name, factor in factors.items()
            if source in factor.known and factor.known[ENCODER].score.high < factor.known[source].score.low
        ]
        if lost:
            yield (
                f"The encoder knows significantly less than {source} of {', '.join(lost)} (the 95 % intervals do not "
                "overlap)."
            )
