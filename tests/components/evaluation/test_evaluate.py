"""An evaluation on real digits: what it reports, what it refuses, and that two of them compare sample by sample."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from components.evaluation.evaluate import Settings, Split, evaluate, evaluation_set, untrained
from components.evaluation.factors import FactorTable
from components.evaluation.references import ENCODER, PIXELS, RANDOM
from components.evaluation.result import Evaluation, paired_gain
from components.registry.export import input_of
from ssl_core.data.shards import SCHEMA, Shards, write_shard
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks.exemplar_cnn import ExemplarCNN
from ssl_core.tasks.rotation import Rotation
from ssl_core.tasks.supervised import Supervised
from ssl_core.types import CorpusVersion, Field

SIDE = 16
TASK = Rotation(canvas=SIDE, flip=False)
ENCODER_SPEC = EncoderSpec("resnet18", width=0.125, stem="imagenet", zero_init=False)
QUICK = Settings(draws=3, batch_size=64)


def write_part(path, rows, labels):
    """A part of one shard with digits `rows`, 16 px a side, grey as RGB."""
    digits = load_digits()
    payloads = []
    for i in rows:
        small = Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8))
        payloads.append(np.repeat(np.asarray(small.resize((SIDE, SIDE), Image.BICUBIC)), 3).tobytes())
    n = len(payloads)
    table = {
        "hash": [hashlib.sha256(payload + bytes([i % 256])).hexdigest() for i, payload in enumerate(payloads)],
        "uri": [f"memory:{i}" for i in rows],
        "source_size": [64] * n,
        "source_mtime": [0] * n,
        "payload": payloads,
        "codec": ["raw"] * n,
        "height": [SIDE] * n,
        "width": [SIDE] * n,
        "label": [str(digits.target[i]) if labels else None for i in rows],
        "batch": [0] * n,
    }
    write_shard(path, pa.table(table, schema=SCHEMA))
    digest = hashlib.sha256(b"".join(payloads)).hexdigest()
    return Split(Shards.open([path]), CorpusVersion(str(path), 1, digest, n))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return write_part(folder / "a.parquet", range(300), True), write_part(folder / "b.parquet", range(300, 450), True)


def evaluation_of(parts, seed=0, settings=QUICK):
    model, start = untrained(TASK, ENCODER_SPEC, seed), untrained(TASK, ENCODER_SPEC, 0)
    return evaluate(TASK, model, start, *parts, settings=settings, device="cpu")


@pytest.fixture(scope="module")
def evaluated(parts):
    return evaluation_of(parts)


def test_every_layer_stands_beside_its_untrained_self_and_the_raw_pixels(evaluated):
    evaluation, _ = evaluated
    layers = [row.layer for row in evaluation.rows if row.source == ENCODER]
    assert (
        layers == [row.layer for row in evaluation.rows if row.source == RANDOM] == [f"stage{i}" for i in range(1, 5)]
    )
    assert evaluation.row(PIXELS).dim == SIDE * SIDE  # grey pictures count one channel
    for row in evaluation.rows:
        assert set(row.scores) == {"linear", "knn", "1-shot", "5-shot"}
        assert all(
            0 <= score.low <= score.mean <= score.high <= 1 or "label" in name for name, score in row.scores.items()
        )
        assert set(row.measures) == {"rank_me", "alignment", "uniformity"}
    assert evaluation.samples == {"train": 300, "test": 150} and evaluation.classes == tuple("0123456789")


def test_an_untrained_encoder_equals_its_random_init_and_raw_digits_are_easy(evaluated):
    evaluation, _ = evaluated
    for layer in ("stage1", "stage4"):
        assert evaluation.row(ENCODER, layer).scores == evaluation.row(RANDOM, layer).scores
    pixels = evaluation.row(PIXELS).scores
    assert pixels["knn"].mean > 0.75 and pixels["linear"].mean > 0.75
    assert pixels["5-shot"].mean > pixels["1-shot"].mean + 0.1


def test_a_task_answered_at_chance_is_said_in_a_sentence(evaluated):
    evaluation, _ = evaluated
    accuracy = evaluation.pretext["accuracy"]
    assert accuracy.chance == 0.25 and accuracy.low < 0.27
    assert any("at chance on held-out samples" in note for note in evaluation.notes)


def test_a_task_that_asks_for_a_samples_number_is_evaluated_without_it_and_exported_as_one_of_images(parts):
    task = ExemplarCNN(canvas=SIDE, size=SIDE, classes=20)  # of which other corpora have no sample
    model = untrained(task, ENCODER_SPEC, 0)
    evaluation, evidence = evaluate(task, model, untrained(task, ENCODER_SPEC, 0), *parts, settings=QUICK, device="cpu")
    assert evaluation.pretext == {} and evaluation.row(PIXELS).scores
    assert "alignment" in evaluation.row(ENCODER, "stage4").measures
    assert evidence.panel.captions[0].startswith("sample 0, taken for")
    assert input_of(task) == ("image", Field("image", (3, SIDE, SIDE)))


def test_a_evaluation_goes_to_json_and_back(evaluated):
    evaluation, _ = evaluated
    text = evaluation.to_json()
    assert Evaluation.from_json(text) == evaluation
    assert json.loads(text)["best"] == evaluation.best
    for broken in ("[]", "{}", "not json", json.dumps(json.loads(text) | {"rows": []})):
        with pytest.raises(ValueError, match="`pretext evaluate` writes it anew"):
            Evaluation.from_json(broken)


def test_evaluating_again_gives_the_same_evaluation_and_batch_size_does_not_count(parts, evaluated):
    again, _ = evaluation_of(parts, settings=dataclasses.replace(QUICK, batch_size=32))
    assert again.evaluation_set == evaluated[0].evaluation_set
    for mine, theirs in zip(again.rows, evaluated[0].rows):
        assert mine.scores["knn"].mean == pytest.approx(theirs.scores["knn"].mean, abs=0.01)
    same, _ = evaluation_of(parts)
    assert same == evaluated[0]


def test_the_evaluation_set_is_named_by_data_seed_and_probes(tmp_path):
    part = write_part(tmp_path / "g.parquet", range(40), False)
    evaluations = [
        evaluation_of((part,))[0],
        evaluation_of((dataclasses.replace(part, corpus=dataclasses.replace(part.corpus, digest="other")),))[0],
        evaluation_of((part,), settings=dataclasses.replace(QUICK, seed=1))[0],
        evaluation_of((part,), settings=dataclasses.replace(QUICK, neighbours=5))[0],
    ]
    assert len({evaluation.evaluation_set for evaluation in evaluations}) == 4


@pytest.fixture(scope="module")
def ink(tmp_path_factory):
    """Factors of the digits: their mean brightness, and a coin for each."""
    path = tmp_path_factory.mktemp("factors") / "factors.parquet"
    images = load_digits().images[:450]
    coins = np.random.default_rng(0).integers(0, 2, 450)
    columns = {"file": [f"memory:{i}" for i in range(450)], "ink": images.mean((1, 2)), "coin": coins.astype(str)}
    pq.write_table(pa.table(columns), path)
    return FactorTable.read(str(path))


def test_factors_are_told_at_every_layer_and_go_to_json_metrics_and_tables(parts, ink, evaluated):
    model = untrained(TASK, ENCODER_SPEC, 0)
    evaluation, _ = evaluate(TASK, model, model, *parts, settings=QUICK, device="cpu", factors=ink)
    assert all(list(row.factors) == ["ink", "coin"] for row in evaluation.rows)
    assert [row.scores for row in evaluation.rows] == [row.scores for row in evaluated[0].rows]
    brightness, coin = evaluation.factors["ink"], evaluation.factors["coin"]
    assert (brightness.kind, brightness.chance, coin.kind, coin.chance) == ("quantity", 0, "name", 0.5)
    assert brightness.known[PIXELS].score.mean > 0.95 and brightness.known[ENCODER].score.low > 0.2
    for source in (ENCODER, RANDOM, PIXELS):
        known = coin.known[source]
        assert known.score.low < 0.5 < known.score.high
        assert evaluation.row(source, known.layer).factors["coin"] == known.score
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    assert evaluation.metrics()["evaluation/factors/ink/raw_pixels"] == brightness.known[PIXELS].score.mean
    assert evaluation.table()[0]["factor ink"] == pytest.approx(100 * evaluation.rows[0].factors["ink"].mean)
    line = evaluation.factor_table()[0]
    assert line["factor"] == "ink" and line["raw pixels"] == pytest.approx(100 * brightness.known[PIXELS].score.mean)
    assert line["encoder layer"] == brightness.known[ENCODER].layer and line["encoder low"] < line["encoder high"]


def test_factors_are_part_of_the_evaluation_set_and_need_no_labels(tmp_path, ink, evaluated, parts):
    bare = write_part(tmp_path / "h.parquet", range(60), False)
    start = untrained(TASK, ENCODER_SPEC, 0)
    evaluation, _ = evaluate(TASK, start, start, bare, settings=QUICK, device="cpu", factors=ink)
    assert evaluation.classes == () and evaluation.factors["ink"].known[PIXELS].score.mean > 0.5
    names = {evaluation_set(*parts, QUICK, factors) for factors in (None, ink, dataclasses.replace(ink, digest="x"))}
    assert len(names) == 3 and evaluated[0].evaluation_set in names
    strange = dataclasses.replace(ink, table=ink.table.slice(10))
    with pytest.raises(ValueError, match="no row for 5 of 30 samples, first memory:0"):
        evaluate(TASK, start, start, bare, settings=QUICK, device="cpu", factors=strange)


def test_a_evaluation_of_before_factors_is_read(evaluated):
    data = json.loads(evaluated[0].to_json())
    del data["factors"]
    for row in data["rows"]:
        del row["factors"]
    assert Evaluation.from_json(json.dumps(data)) == evaluated[0]


def test_an_evaluation_of_before_the_terms_of_today_is_read(parts, ink):
    model = untrained(TASK, ENCODER_SPEC, 0)
    evaluation, _ = evaluate(TASK, model, model, *parts, settings=QUICK, device="cpu", factors=ink)
    data = json.loads(evaluation.to_json())
    del data["corpora"]
    for part in (*(row["scores"] for row in data["rows"]), data["correct"]):
        for shots in (1, 5):
            part[f"{shots}-label"] = part.pop(f"{shots}-shot")
    for factor in data["factors"].values():
        factor["guessing"] = factor.pop("chance")
    data["pretext"]["explained"] = data["pretext"].pop("loss")
    read = Evaluation.from_json(json.dumps(data))
    pretext = {"r2" if name == "loss" else name: value for name, value in evaluation.pretext.items()}
    assert read == dataclasses.replace(evaluation, corpora={}, pretext=pretext)
    assert paired_gain(read, evaluation, "5-shot") == (0, 0, 0)


def test_the_probes_are_those_of_the_settings_in_the_order_of_all_tables(parts):
    evaluation, _ = evaluation_of(parts, settings=dataclasses.replace(QUICK, shots=(10, 2)))
    assert [probe.key for probe in evaluation.probes] == ["linear", "knn", "2-shot", "10-shot"]
    assert set(evaluation.correct) == {"linear", "knn", "2-shot", "10-shot"}
    best = evaluation.row(ENCODER, evaluation.best).scores["10-shot"]
    assert evaluation.metrics()["evaluation/best/10-shot"] == best.mean


def test_the_corpora_are_named_and_those_that_differ_are_told(parts, evaluated):
    mine, _ = evaluated
    assert mine.corpora == {"train": parts[0].corpus, "test": parts[1].corpus}
    grown = dataclasses.replace(parts[1].corpus, version=2, digest="f" * 64, samples=160)
    theirs = dataclasses.replace(mine, evaluation_set="other", corpora=mine.corpora | {"test": grown})
    with pytest.raises(ValueError) as refused:
        paired_gain(mine, theirs)
    uri = re.escape(parts[1].corpus.uri)
    assert re.search(rf"the test samples are from {uri} version 1 \(150 .* {uri} version 2 \(160", str(refused.value))
    assert "train samples" not in str(refused.value)
    with pytest.raises(ValueError, match="corpora are the same, but the settings"):
        paired_gain(mine, dataclasses.replace(theirs, corpora=mine.corpora))
    with pytest.raises(ValueError, match="from a corpus that was not recorded"):
        paired_gain(mine, dataclasses.replace(theirs, corpora={}))


def test_the_paired_gain_is_zero_on_itself_and_finds_which_of_two_is_better(parts, evaluated):
    mine, _ = evaluated
    for probe in ("linear", "knn", "1-shot", "5-shot"):
        assert paired_gain(mine, mine, probe) == (0, 0, 0)
    other, _ = evaluation_of(parts, seed=5)
    gain = paired_gain(other, mine, "knn")
    scores = [evaluation.row(ENCODER, evaluation.best).scores["knn"].mean for evaluation in (other, mine)]
    assert gain.mean == pytest.approx(100 * (scores[0] - scores[1]))
    assert gain.low <= gain.mean <= gain.high
    backwards = paired_gain(mine, other, "knn")
    assert backwards.mean == pytest.approx(-gain.mean)


def test_evaluations_that_cannot_be_compared_are_refused(evaluated):
    mine, _ = evaluated
    with pytest.raises(ValueError, match="different evaluation sets"):
        paired_gain(mine, dataclasses.replace(mine, evaluation_set="other"))
    with pytest.raises(ValueError, match="no per-sample record of the probe 'svm'"):
        paired_gain(mine, mine, "svm")


def test_without_labels_the_label_free_measures_remain(tmp_path):
    part = write_part(tmp_path / "c.parquet", range(200), False)
    evaluation, evidence = evaluation_of((part,))
    assert evaluation.best == "stage4" and evaluation.classes == () and evaluation.correct == {}
    assert all(not row.scores and row.measures["rank_me"] >= 1 for row in evaluation.rows)
    assert any("no labelled set" in note for note in evaluation.notes)
    assert evidence.labels == () and len(evidence.queries) == 8
    assert Evaluation.from_json(evaluation.to_json()) == evaluation


def test_the_supervised_reference_is_asked_for_held_out_labels_where_they_mean_the_same(parts, tmp_path):
    def pretext(classes, *splits):
        task = Supervised(canvas=SIDE, size=SIDE, classes=classes)
        models = [untrained(task, ENCODER_SPEC, seed) for seed in (0, 0)]
        evaluation, evidence = evaluate(task, *models, *splits, settings=QUICK, device="cpu")
        assert set(evaluation.rows[0].scores) == {"linear", "knn", "1-shot", "5-shot"}
        assert len(evidence.panel.captions) == min(256, evaluation.samples["test"])
        return evaluation.pretext

    assert pretext(10, *parts)["accuracy"].chance == 0.1
    assert 0 < pretext(10, *parts)["accuracy"].mean < 0.4
    assert pretext(11, *parts) == {}  # the model knows classes that are not here
    some = write_part(tmp_path / "h.parquet", [0, 1, 2, 10, 11, 12], True)
    assert pretext(10, parts[0], some) == {}  # the test split's third class need not be the model's


def test_labels_that_cannot_evaluate_are_named(parts, tmp_path):
    train, test = parts
    bare = write_part(tmp_path / "d.parquet", range(20), False)
    zeros = write_part(tmp_path / "e.parquet", [0, 10, 20], True)
    with pytest.raises(ValueError, match="has none as a label"):
        evaluation_of((bare, test))
    with pytest.raises(ValueError, match="has only '0' as a label"):
        evaluation_of((zeros, test))
    with pytest.raises(ValueError, match="no labelled sample"):
        evaluation_of((train, bare))
    few = write_part(tmp_path / "f.parquet", [0, 1, 10, 11], True)
    with pytest.raises(ValueError, match="has the class '2'"):
        evaluation_of((few, test))


def test_a_broken_encoder_does_not_pass_the_gate(parts):
    model = untrained(TASK, ENCODER_SPEC, 0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    evaluation, _ = evaluate(TASK, model, untrained(TASK, ENCODER_SPEC, 0), *parts, settings=QUICK, device="cpu")
    assert "nearly the same" in evaluation.collapse
    assert evaluation.metrics()["evaluation/collapsed"] == 1


def test_metrics_and_table_are_flat_and_name_every_row(evaluated):
    evaluation, _ = evaluated
    metrics = evaluation.metrics()
    best = evaluation.row(ENCODER, evaluation.best)
    assert metrics["evaluation/best/linear"] == best.scores["linear"].mean
    assert metrics["evaluation/raw_pixels/knn"] == evaluation.row(PIXELS).scores["knn"].mean
    assert all(isinstance(value, float) for value in metrics.values())
    table = evaluation.table()
    assert len(table) == len(evaluation.rows) == 9
    assert table[0]["linear"] == pytest.approx(100 * evaluation.rows[0].scores["linear"].mean)


def test_neighbours_are_real_pictures_of_the_training_part(parts, evaluated):
    _, evidence = evaluated
    assert evidence.neighbours.shape == (8, 5, SIDE, SIDE, 3) and evidence.queries.shape == (8, SIDE, SIDE, 3)
    known = {parts[0].shards.payload(i).tobytes() for i in range(len(parts[0].shards))}
    assert all(picture.tobytes() in known for picture in evidence.neighbours.reshape(-1, SIDE, SIDE, 3))
    assert all(len(captions) == 6 for captions in evidence.captions)
    assert evidence.captions[0][0] == "0" and len(evidence.labels) == len(evidence.features) == 150


def test_settings_that_make_no_sense_are_refused():
    for wrong, said in (
        ({"draws": 1}, "draws is 1; it must be between 2 and 255"),
        ({"draws": 256}, "draws is 256; it must be between 2 and 255"),
        ({"neighbours": 0}, "neighbours, .* must be at least 1"),
        ({"holdout": 1.0}, "holdout must be between 0 and 1"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"shots": (0,)}, "shots, .* must be at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            Settings(**wrong)
