"""Comparisons: who stands above or below what, which references are shown, and what is recorded."""

from __future__ import annotations

import json
from dataclasses import replace

from small_comparison import BOTH, comparison, contender, evaluation

from components.evaluation.references import RANDOM
from components.reports.comparison_report import write_comparison
from components.reports.tables import comparison_note
from ssl_core.types import CorpusVersion


def test_lines_are_tasks_then_references_each_once() -> None:
    lines = BOTH.lines()
    assert [(line.title, line.kind) for line in lines] == [
        ("simclr", "task"),
        ("rotation", "task"),
        ("jigsaw", "task"),
        ("supervised", "supervised"),
        ("random init", "random init"),
        ("raw pixels", "raw pixels"),
    ]
    assert lines[0].row is not None and lines[0].row.layer == "stage2" and lines[0].pretext == ("accuracy", 0.7, 0.25)
    assert lines[2].row is None and lines[2].score("linear") is None


def test_another_network_has_a_reference_of_its_own_with_its_tasks_named() -> None:
    other = comparison(*BOTH.contenders, contender("vit", "masked_autoencoder", evaluation(0.7, untrained=0.3)))
    assert [line.title for line in other.lines() if line.kind == RANDOM] == [
        "random init",
        "random init of masked_autoencoder",
    ]


def test_an_untrained_network_evaluated_with_other_threads_is_no_other_network() -> None:
    near, far = (contender(f"near {shift}", "moco", evaluation(0.7, untrained=0.5 + shift)) for shift in (0.004, 0.006))
    first = contender("first", "simclr", evaluation(0.9, untrained=0.5))
    assert len([line for line in comparison(first, near).lines() if line.kind == RANDOM]) == 1
    assert len([line for line in comparison(first, far).lines() if line.kind == RANDOM]) == 2


def test_standing_is_against_the_tasks_own_untrained_network_and_above_only_where_intervals_do_not_meet() -> None:
    good, bad = BOTH.lines()[:2]
    assert (good.above, good.below) == ({"linear", "hue"}, frozenset())
    assert (bad.above, bad.below) == (frozenset(), {"linear", "hue"})
    near = comparison(contender("near", "simclr", evaluation(0.53, hue=0.3))).lines()[0]
    assert not near.above and not near.below


def test_records_metrics_and_json_hold_the_figures() -> None:
    record = BOTH.records()[0]
    assert (record["what"], record["layer"], record["recipe"]) == ("simclr", "stage2", "good")
    assert (record["linear"], round(record["linear low"]), record["hue"]) == (90.0, 88, 50.0)
    assert (record["pretext value"], record["samples per second"], record["peak memory MiB"]) == (0.7, 250.0, 1024.0)
    metrics = BOTH.metrics()
    assert metrics["good/linear"] == 0.9 and metrics["good/factors/hue"] == 0.5 and metrics["raw pixels/linear"] == 0.6
    assert not any(name.startswith("broken") for name in metrics)
    told = json.loads(BOTH.to_json())
    assert told["budget"] == 100.0 and len(told["table"]) == len(BOTH.lines())
    assert told["contenders"][3]["failure"] == "The loss became <NaN>."


def test_scores_on_other_samples_are_told_with_the_corpora_that_differ() -> None:
    assert BOTH.notes == ()
    corpora = [{"test": CorpusVersion("/corpora/test", version, str(version) * 64, 10)} for version in (1, 2)]
    good, bad = (replace(evaluation(0.9), corpora=each) for each in corpora)
    mixed = comparison(
        contender("good", "simclr", good), contender("bad", "rotation", replace(bad, evaluation_set="other"))
    )
    [note] = mixed.notes
    assert note.startswith("bad was evaluated on another evaluation set than good, so their scores cannot be compared:")
    assert "/corpora/test version 1 (10 samples" in note and "/corpora/test version 2 (10 samples" in note
    assert note in comparison_note(mixed) and note in write_comparison(mixed, {}, {})
