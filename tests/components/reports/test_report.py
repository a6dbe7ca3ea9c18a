"""The report of a real evaluation: that nothing is fetched, that all text is escaped, what its first sentence says."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from small_evaluation import EVIL, make_evaluation, make_evidence, points, with_factors

from components.reports import figures
from components.reports.report import About, write_report


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


def test_known_factors_have_a_table_in_the_report(about):
    evaluation = with_factors(make_evaluation())
    text = write_report(evaluation, {}, about)
    shown = " ".join(re.sub("<[^>]*>", " ", text).split())
    for part in ("hue 63.0 61.0 – 65.0 · stage1 41.0 39.0 – 43.0 · stage2 0.0 -2.0 – 2.0 0.0", "29.0 – 33.0", "12.5"):
        assert part in shown
    assert EVIL in Page(text).text and "<script" not in text
    assert "What the encoder knows" not in write_report(make_evaluation(), {}, about)


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
        "Evaluated without labels: the representation has not collapsed; its accuracy is not known.",
    )


def test_a_model_folder_and_no_model_at_all_are_reported_too(about):
    folder = Page(write_report(make_evaluation(), {}, dataclasses.replace(about, model="/runs/a/model"))).text
    assert 'load_model(Path("/runs/a/model"))' in folder
    assert "not been saved" in write_report(make_evaluation(), {}, dataclasses.replace(about, model=""))
