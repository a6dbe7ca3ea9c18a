"""Comparisons: who stands above or below what, which references are shown, and what figures and the page say."""

from __future__ import annotations

import json
from dataclasses import replace

from components.evaluation.comparison import Comparison, Contender
from components.evaluation.references import ENCODER, PIXELS, RANDOM
from components.evaluation.result import Evaluation, Factor, Known, Pretext, Row
from components.reports.comparison_figures import draw
from components.reports.comparison_report import write_comparison
from components.reports.tables import comparison_note
from ssl_core.probes.intervals import Interval
from ssl_core.types import CorpusVersion


def around(mean: float, half: float = 0.02) -> Interval:
    return Interval(mean, mean - half, mean + half)


def evaluation(linear: float, untrained: float = 0.5, hue: float = 0.1, untrained_hue: float = 0.3) -> Evaluation:
    """An encoder of two layers of which the second is the better one, on one probe and one factor."""
    shared = {"measures": {"rank_me": 7.0}}
    rows = (
        Row(ENCODER, "stage1", 8, {"linear": around(0.2)}, train_knn=0.1, **shared),
        Row(ENCODER, "stage2", 8, {"linear": around(linear)}, train_knn=0.9, **shared),
        Row(RANDOM, "stage1", 8, {"linear": around(untrained)}, train_knn=0.5, **shared),
        Row(PIXELS, "", 8, {"linear": around(0.6)}, train_knn=0.6, **shared),
    )
    known = {ENCODER: Known("stage1", around(hue)), RANDOM: Known("stage1", around(untrained_hue))}
    return Evaluation(
        rows=rows,
        best="stage2",
        samples={"train": 20, "test": 10},
        classes=("a", "b"),
        evaluation_set="e",
        settings={"shots": (1,), "draws": 3},
        pretext={"loss": Pretext(1.0, 0.9, 1.1, None), "accuracy": Pretext(0.7, 0.6, 0.8, 0.25)},
        collapse="",
        notes=(),
        correct={},
        factors={"hue": Factor("quantity", 0.0, known | {PIXELS: Known("", around(0.8))})},
    )


def contender(recipe: str, task: str, evaluated: Evaluation | None, **more: object) -> Contender:
    return replace(Contender(recipe, task, "resnet18", f"{recipe}-key", evaluated, 100, 9.5, 250.0, 1 << 30), **more)


def comparison(*contenders: Contender) -> Comparison:
    return Comparison("side", "corpus", 3, 100.0, "CPU-seconds", contenders)


BOTH = comparison(
    contender("good", "simclr", evaluation(0.9, hue=0.5)),
    contender("reference", "supervised", evaluation(0.95)),
    contender("bad", "rotation", evaluation(0.4)),
    contender("broken", "jigsaw", None, failure="The loss became <NaN>."),
)


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


def test_figures_are_drawn_of_what_is_there() -> None:
    assert {name: png[:4] for name, png in draw(BOTH).items()} == {"probes": b"\x89PNG", "factors": b"\x89PNG"}
    plain = comparison(contender("good", "simclr", replace(evaluation(0.9), factors={})))
    assert set(draw(plain)) == {"probes"}
    assert draw(comparison(BOTH.contenders[3])) == {}


def test_the_page_is_self_contained_tells_failures_and_escapes() -> None:
    page = write_comparison(BOTH, draw(BOTH), {"good-key": b"\x89PNG"})
    assert "The loss became &lt;NaN&gt;." in page and "<NaN>" not in page
    assert "90.0" in page and "88.0 – 92.0" in page and 'class="above"' in page and 'class="below"' in page
    assert page.count("data:image/png;base64,") == 3
    assert "The loss became" in write_comparison(comparison(BOTH.contenders[3]), {}, {})
    assert "http://" not in page and "https://" not in page
