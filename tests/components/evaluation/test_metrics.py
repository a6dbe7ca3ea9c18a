"""How numbers are written, which probes there are and in which order, and which references fit a modality."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from components.evaluation import references
from components.evaluation.metrics import ACCURACY, LINEAR, LOSS, R2, headline, pretext_metric, probes
from components.evaluation.references import PIXELS, REFERENCES, RawInput, raw_input, reference, role_of
from ssl_core.probes.intervals import Interval
from ssl_core.types import Field, Raw

IMAGE, SOUND = Field("image", (3, 8, 8)), Field("audio", (1, 400))


def test_a_share_is_written_in_per_cent_and_a_loss_is_not() -> None:
    score = Interval(0.904, 0.874, 0.928)
    assert (LINEAR.text(0.904), LINEAR.bounds(score)) == ("90.4 %", "87.4 – 92.8")
    assert LINEAR.bracketed(score) == "90.4 [87.4, 92.8]" and LINEAR.plus_minus(score) == "90.4 ±2.7"
    assert R2.number(-0.0004) == "0.0" and R2.number(-0.004, 0) == "0"
    assert LOSS.text(4.2039) == "4.204" and ACCURACY.axis == "accuracy in %" and LOSS.axis == "loss"
    assert LINEAR.record("linear", Interval(0.5, 0.25, 0.75)) == {"linear": 50, "linear low": 25, "linear high": 75}


def test_probes_are_in_one_order_whatever_the_order_of_their_scores() -> None:
    found = probes(["10-shot", "svm", "knn", "2-shot", "linear", "knn"])
    assert [probe.key for probe in found] == ["linear", "knn", "2-shot", "10-shot", "svm"]
    assert [probe.title for probe in found] == ["Linear probe", "kNN", "2-shot probe", "10-shot probe", "svm"]


def test_the_headline_of_a_task_is_its_accuracy_else_r2_else_its_loss() -> None:
    assert headline(["loss", "r2", "accuracy"]) == ACCURACY and headline(["loss", "r2"]) == R2
    assert headline(["perplexity", "loss"]) == LOSS and headline(["perplexity"]) is None
    assert pretext_metric("adversary_accuracy").column == "adversary accuracy"


def test_a_raw_input_is_chosen_by_modality_and_a_further_one_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = raw_input({"image": IMAGE, "number": Field("index", ())})
    assert chosen is not None and chosen.name == PIXELS and role_of(PIXELS) == "raw input"
    assert raw_input({"sound": SOUND}) is None and raw_input({"image": IMAGE, "sound": SOUND}) is None

    def mean(raw: Raw) -> Mapping[str, Tensor]:
        return {"": raw["sound"].mean(2)}

    audio = frozenset[references.Modality]({"audio"})
    loudness = RawInput(name="loudness", role="raw input", phrase="loudness", modalities=audio, features=mean)
    monkeypatch.setattr(references, "REFERENCES", (*REFERENCES, loudness))
    assert raw_input({"sound": SOUND}) is loudness and role_of("loudness") == "raw input"
    assert loudness.features({"sound": torch.ones(2, 1, 400)})[""].tolist() == [[1.0], [1.0]]
    assert raw_input({"image": IMAGE}) is chosen


def test_an_unknown_reference_is_named() -> None:
    with pytest.raises(
        ValueError, match="No reference is named 'magic'; there are random init, raw pixels, supervised"
    ):
        reference("magic")
