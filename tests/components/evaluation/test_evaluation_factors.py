"""A file of factors: how it finds its samples, what it refuses in a sentence, and what is told of each factor."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components.evaluation.factors import FactorsError, FactorTable, match_factors, score_factors
from components.evaluation.features import Features
from components.evaluation.notes import lost_factors
from components.evaluation.references import ENCODER, PIXELS, RANDOM
from components.evaluation.result import Factor, Known, Row
from components.samples.shapes import write_shapes
from ssl_core.probes.intervals import Interval

FILES = [f"train/{i}.png" for i in range(8)]
URIS = [f"/data/{file}" for file in FILES]


def written(path, columns, metadata=None):
    """The table of a Parquet file with these columns; `metadata`: column -> that of its field."""
    table = pa.table(columns)
    fields = [field.with_metadata((metadata or {}).get(field.name)) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), path)
    return FactorTable.read(str(path))


def some(**columns):
    return {"file": FILES, "size": [float(i) for i in range(8)], **columns}


def refused(call, *words):
    with pytest.raises(FactorsError) as caught:
        call()
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text


def test_a_sample_belongs_to_the_row_whose_file_is_the_end_of_its_uri_by_whole_names(tmp_path):
    table = written(tmp_path / "f.parquet", {"file": ["a/1.png", "1.png", "2.png"], "size": [1, 2, 3]})
    assert table.rows(["/x/a/1.png", "s3://bucket/b/1.png", "/x/pack.tar!2.png", "/x/pack.tar!a/1.png"]) == [0, 1, 2, 0]
    assert table.rows(["a/1.png", "2.png"]) == [0, 2]
    refused(lambda: table.rows(["/x/1.png", "/x/12.png", "/x/other"]), "2 of 3 samples, first /x/12.png", "'a/1.png'")


def test_a_row_that_would_serve_two_samples_is_refused(tmp_path):
    table = written(tmp_path / "f.parquet", {"file": [f"{i}.png" for i in range(8)], "size": list(range(8))})
    match_factors(table, URIS, URIS)
    refused(
        lambda: match_factors(table, URIS, ["/data/test/1.png", "/data/test/2.png"]),
        "'1.png' is the end of both /data/train",
    )


def test_text_and_switches_are_names_numbers_quantities_and_what_has_a_period_a_circle(tmp_path):
    columns = some(
        part=["train"] * 8,
        kind=pa.array(list("abababab")).dictionary_encode(),
        lit=[True, False] * 4,
        count=list(range(8)),
        angle=[45.0 * i for i in range(8)],
        __index_level_0__=list(range(8)),
    )
    asked = match_factors(written(tmp_path / "f.parquet", columns, {"angle": {"period": "360"}}), URIS[:4], URIS[4:])
    expected = {"size": "quantity", "kind": "name", "lit": "name", "count": "quantity", "angle": "circle"}
    assert asked.kinds == expected and list(asked.train) == list(asked.test) == list(expected)
    assert asked.chance == {"size": 0, "kind": 0.5, "lit": 0.5, "count": 0, "angle": 0}
    assert asked.train["kind"].tolist() == [0, 1, 0, 1] and asked.test["size"].tolist() == [[4], [5], [6], [7]]
    for i, point in enumerate(asked.train["angle"].tolist()):
        assert point == pytest.approx([np.cos(np.pi * i / 4), np.sin(np.pi * i / 4)])


def test_a_name_that_the_training_part_has_not_has_no_number(tmp_path):
    asked = match_factors(written(tmp_path / "f.parquet", some(kind=list("ababcbac"))), URIS[:4], URIS[4:])
    assert asked.test["kind"].tolist() == [-1, 1, 0, -1] and asked.chance["kind"] == 0.5


def test_files_that_hold_no_factors_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "f.parquet"
    refused(lambda: FactorTable.read(str(path)), str(path), "there is no such file")
    path.write_text("file,size\n")
    refused(lambda: FactorTable.read(str(path)), "not a Parquet file")
    path.write_bytes(b"PAR1 and nothing more PAR1")
    refused(lambda: FactorTable.read(str(path)), "not a Parquet file")
    refused(lambda: written(path, {"name": FILES, "size": range(8)}), "no column `file`", "it has name, size")
    refused(lambda: written(path, {"file": range(8), "size": range(8)}), "not text in every row")
    refused(lambda: written(path, {"file": ["a", None], "size": [1, 2]}), "not text in every row")
    refused(lambda: written(path, {"file": ["a"], "size": [1]}), "has 1 rows", "fewer than 2")
    refused(lambda: written(path, {"file": ["a", "b", "a"], "size": [1, 2, 3]}), "2 rows for 'a'")
    refused(lambda: written(path, {"file": ["a", "b"], "part": ["x", "y"]}), "so no factors")
    refused(lambda: written(path, {"file": ["a", "b"], "when": [[1], [2]]}), "'when' is neither text nor numbers")
    refused(
        lambda: written(path, {"file": ["a", "b"], "what?": [1, 2]}),
        "'what?' contains a character that MLflow does not accept",
    )


@pytest.mark.parametrize("period", ["0", "-1", "inf", "a turn"])
def test_a_period_that_is_none_is_refused(tmp_path, period):
    refused(lambda: written(tmp_path / "f.parquet", some(), {"size": {"period": period}}), repr(period), "above 0")


def test_factors_that_say_nothing_are_refused(tmp_path):
    path = tmp_path / "f.parquet"

    def asked(**columns):
        table = written(path, some(**columns))
        return lambda: match_factors(table, URIS[:4], URIS[4:])

    refused(asked(kind=["a"] * 4 + list("abab")), "'kind' is 'a' for all 4 training samples")
    refused(asked(size=[1.0] * 8), "'size' is 1.0 for all 4 training samples")
    refused(asked(size=[1.0, 2, 3, 4, 5, 5, 5, 5]), "'size' is 5.0 for all 4 test samples")
    refused(asked(size=[1.0, None, 3, 4, 5, 6, 7, 8]), "'size' of 'train/1.png' is None")
    refused(asked(size=[1.0, 2, 3, 4, 5, 6, float("nan"), 8]), "'size' of 'train/6.png' is nan")
    table = written(path, some())
    refused(lambda: match_factors(table, URIS[:3], URIS[4:]), "at least 4 training samples; there are 3")
    refused(lambda: match_factors(table, URIS[:4], URIS[4:5]), "at least 2 test samples; there are 1")


def test_the_digest_is_of_the_files_contents(tmp_path):
    one, same, other = (
        written(tmp_path / f"{name}.parquet", some(size=[float(i) for i in values]))
        for name, values in (("a", range(8)), ("b", range(8)), ("c", range(1, 9)))
    )
    assert one.digest == same.digest != other.digest


def test_the_sample_corpus_tells_its_own_periods(tmp_path):
    write_shapes(tmp_path, {"train": 20, "test": 8}, side=8)
    table = FactorTable.read(str(tmp_path / "factors.parquet"))
    uris = sorted(str(path) for path in tmp_path.rglob("*.png"))
    asked = match_factors(table, uris[8:], uris[:8])
    assert {name for name, kind in asked.kinds.items() if kind == "circle"} == {"angle", "hue"}
    assert {name for name, kind in asked.kinds.items() if kind == "name"} == {"shape", "texture"}


def features(n, holding, rng):
    """Of a network whose first layer holds the factors and whose second holds nothing."""
    return Features({"one": holding, "two": torch.randn(n, 6, generator=rng)}, {})


def test_each_source_tells_a_factor_by_the_layer_that_holds_it(tmp_path):
    n, rng = 120, torch.Generator().manual_seed(0)
    files = [f"{i}.png" for i in range(n)]
    size, kind = torch.rand(n, generator=rng), torch.randint(2, (n,), generator=rng)
    columns = {"file": files, "size": size.tolist(), "kind": [("a", "b")[i] for i in kind]}
    asked = match_factors(written(tmp_path / "f.parquet", columns), files[:80], files[80:])
    holding = torch.stack([size, kind.float()], 1) @ torch.randn(2, 6, generator=rng)
    grey = torch.rand(n, 12, generator=rng).repeat(1, 3)
    whole = {
        ENCODER: features(n, holding, rng),
        RANDOM: features(n, torch.randn(n, 6, generator=rng), rng),
        PIXELS: Features({"": grey}, {}),
    }
    parts = [
        {source: Features({at: x[rows] for at, x in f.layers.items()}, {}) for source, f in whole.items()}
        for rows in (slice(0, 80), slice(80, n))
    ]
    rows = [Row(source, layer, 6, {}, {}) for source, f in whole.items() for layer in f.layers]
    evaluated, factors = score_factors(rows, *parts, asked, seed=0)
    assert [(row.source, row.layer) for row in evaluated] == [(row.source, row.layer) for row in rows]
    assert all(list(row.factors) == ["size", "kind"] for row in evaluated)
    assert factors["size"].kind == "quantity" and factors["kind"].chance == 0.5
    for name, least in (("size", 0.98), ("kind", 0.9)):
        known = factors[name].known
        assert known[ENCODER].layer == "one" and known[ENCODER].score == evaluated[0].factors[name]
        assert known[ENCODER].score.low > least > known[RANDOM].score.high and known[PIXELS].layer == ""
    assert factors["size"].known[PIXELS].score.mean < 0.1
    assert list(lost_factors(factors)) == []


def test_what_the_encoder_knows_significantly_less_of_is_said():
    def factor(**means):
        known = {name.replace("_", " "): Known("", Interval(m, m - 0.02, m + 0.02)) for name, m in means.items()}
        return Factor("quantity", 0.0, known)

    factors = {
        "hue": factor(encoder=0.1, random_init=0.3, raw_pixels=0.5),
        "x": factor(encoder=0.5, random_init=0.51, raw_pixels=0.9),
        "y": factor(encoder=0.9, random_init=0.1),
    }
    said = list(lost_factors(factors))
    assert len(said) == 2 and re.search(r"significantly less than random init of hue \(", said[0])
    assert "significantly less than raw pixels of hue, x (" in said[1]
