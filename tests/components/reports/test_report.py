"""The figures and the report of a real evaluation: what is drawn, that nothing is fetched, that all text is escaped."""

import dataclasses
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from components.evaluation.evaluate import Evaluation, Evidence
from components.evaluation.references import ENCODER, PIXELS, RANDOM, role_of
from components.evaluation.result import Factor, Known, Pretext, Row
from components.reports import figures
from components.reports.report import About, write_report
from ssl_core.probes.intervals import Interval
from ssl_core.types import Panel

EVIL = "<script>alert('1')</script>\"&"


def score(mean):
    return Interval(mean, mean - 0.02, mean + 0.02)


def make_evaluation(better=0.1, labels=True, collapse=""):
    names = ("linear", "knn", "1-shot", "5-shot") if labels else ()
    measures = {"rank_me": 12.5, "alignment": 0.1, "uniformity": -2.0}
    rows = [
        Row(source, layer, 32, {name: score(base) for name in names}, measures, base)
        for source, base in ((ENCODER, 0.7 + better), (RANDOM, 0.5), (PIXELS, 0.7))
        for layer in (("stage1", "stage2") if source != PIXELS else ("",))
    ]
    return Evaluation(
        rows=tuple(rows),
        best="stage2",
        samples={"train": 1347, "test": 450},
        classes=tuple("0123456789") if labels else (),
        evaluation_set="0123456789abcdef",
        settings={"draws": 20},
        pretext={"accuracy": Pretext(0.9, 0.88, 0.92, 0.25)},
        collapse=collapse,
        notes=(EVIL,),
        correct={},
    )


def with_factors(evaluation):
    """The evaluation, of an encoder that knows hue, and of one factor whose name is hostile."""

    def factor(kind, chance, *means):
        layers = ("stage1", "stage2", "")
        known = zip((ENCODER, RANDOM, PIXELS), layers, means)
        return Factor(kind, chance, {source: Known(layer, score(mean)) for source, layer, mean in known})

    factors = {"hue": factor("circle", 0.0, 0.63, 0.41, -0.0004), EVIL: factor("name", 0.125, 0.31, 0.22, 0.17)}
    return dataclasses.replace(evaluation, factors=factors)


def make_evidence(labels=True):
    rng = np.random.default_rng(0)
    labels_of = tuple(str(i % 3) for i in range(60)) if labels else ()
    return Evidence(
        layer="stage2",
        features=rng.normal(size=(60, 8)).astype(np.float32),
        labels=labels_of,
        queries=rng.integers(0, 255, (6, 16, 16, 3), dtype=np.uint8),
        found=rng.integers(0, 255, (6, 5, 16, 16, 3), dtype=np.uint8),
        captions=tuple(("0", "0", "1", "0", "2", "0") for _ in range(6)),
        panel=Panel({"input": torch.rand(9, 3, 16, 16), "answer": torch.rand(9, 3, 24, 24)}, [EVIL] * 9),
    )


def points(n=20):
    return [SimpleNamespace(step=i, metrics={"loss": 5 / (i + 1), "lr": 0.1, "accuracy": i / n}) for i in range(n)]


@pytest.fixture(scope="module")
def drawn():
    return figures.draw(make_evaluation(), make_evidence(), points())


@pytest.fixture
def about():
    return About(
        "digits <1>",
        "key0123",
        "digits",
        3,
        "digest0123",
        1347,
        f"name: {EVIL}",
        "models:/digits@champion",
        {"Task": EVIL},
    )


class Page(HTMLParser):
    """What a browser would run, fetch and show."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


def test_every_figure_is_a_png_with_something_on_it(drawn):
    assert list(drawn) == ["layers", "answers", "neighbours", "map", "curves"]
    for png in drawn.values():
        picture = Image.open(io.BytesIO(png))
        assert picture.format == "PNG" and 600 < picture.width < 2400
        assert np.asarray(picture.convert("L")).std() > 5


def test_figures_without_data_are_left_out():
    evidence = make_evidence(labels=False)
    drawn = figures.draw(make_evaluation(labels=False), evidence, points(1))
    assert list(drawn) == ["answers", "neighbours", "map"]


def test_known_factors_have_a_figure():
    drawn = figures.draw(with_factors(make_evaluation(labels=False)), make_evidence(labels=False), [])
    assert list(drawn) == ["factors", "answers", "neighbours", "map"]
    picture = np.asarray(Image.open(io.BytesIO(drawn["factors"])).convert("RGB")).astype(int)
    for source in (ENCODER, RANDOM, PIXELS):
        colour = figures.LOOKS[role_of(source)].colour
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - wanted).max(2) < 8).sum() > 20, "a source's dots are missing"


def test_known_factors_have_a_table_in_the_report(about):
    evaluation = with_factors(make_evaluation())
    text = write_report(evaluation, {}, about)
    shown = " ".join(re.sub("<[^>]*>", " ", text).split())
    for part in ("hue 63.0 61.0 – 65.0 · stage1 41.0 39.0 – 43.0 · stage2 0.0 -2.0 – 2.0 0.0", "29.0 – 33.0", "12.5"):
        assert part in shown
    assert EVIL in Page(text).text and "<script" not in text
    assert "What the encoder knows" not in write_report(make_evaluation(), {}, about)


def test_a_figure_is_the_same_each_time():
    assert figures.layers(make_evaluation()) == figures.layers(make_evaluation())
    assert figures.embedding_map(make_evidence()) == figures.embedding_map(make_evidence())


def test_the_report_fetches_nothing(drawn, about):
    page = Page(write_report(make_evaluation(), drawn, about))
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import", write_report(make_evaluation(), drawn, about))


def test_inserted_text_is_shown_not_run(drawn, about):
    text = write_report(make_evaluation(), drawn, about)
    assert "<script" not in text
    assert Page(text).text.count(EVIL) == 3  # note, fact, recipe


def test_the_report_shows_what_was_run_and_evaluated_and_how_to_load_it(drawn, about):
    shown = Page(write_report(make_evaluation(), drawn, about)).text
    for part in (
        "digits <1>",
        "key0123",
        "digest0123",
        "1,347 samples",
        "80.0",
        "78.0 – 82.0",
        "0123456789abcdef",
        "best layer",
    ):
        assert part in shown
    assert 'mlflow.pytorch.load_model("models:/digits@champion")' in shown
    assert "90.0 %" in shown and "25.0 %" in shown  # the pretext accuracy beside chance


def test_the_first_sentence_is_the_verdict(about):
    def first(evaluation):
        return re.search(r'class="verdict (\w+)">([^<]*)', write_report(evaluation, {}, about)).groups()

    assert first(make_evaluation())[0] == "good"
    assert first(make_evaluation(better=-0.1))[0] == "bad"
    assert first(make_evaluation(collapse="All the same."))[1].startswith("The representation has collapsed.")
    assert first(make_evaluation(labels=False)) == (
        "plain",
        "Evaluated without labels: the representation has not collapsed; nothing is known of its accuracy.",
    )


def test_a_model_folder_and_no_model_at_all_are_reported_too(about):
    folder = Page(write_report(make_evaluation(), {}, dataclasses.replace(about, model="/runs/a/model"))).text
    assert 'load_model(Path("/runs/a/model"))' in folder
    assert "not been saved" in write_report(make_evaluation(), {}, dataclasses.replace(about, model=""))
