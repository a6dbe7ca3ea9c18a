"""Files and corpora through an encoder into Parquet."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.corpus import delta
from components.corpus.corpus import Corpus
from components.embed.embed import EmbedError, embed
from components.storage.files import StorageError, join, replacing
from ssl_core.data.decode import SampleFormat
from ssl_core.data.shards import SCHEMA, write_shard
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks.rotation import Rotation
from ssl_core.train.checkpoint import save_model
from ssl_core.train.saved_model import load_model

SIDE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    task, spec = Rotation(canvas=SIDE), EncoderSpec(name="resnet18", width=0.25, stem="cifar")
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, task, spec, task.build(spec.build).state_dict())
    return folder


def png(seed: int, width: int = SIDE, height: int = SIDE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    coded = io.BytesIO()
    Image.fromarray(pixels).save(coded, "PNG")
    return coded.getvalue()


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(png(i))
    return folder


def expected(model: Path, seeds: list[int], layer: str | None = None) -> np.ndarray:
    _, network = load_model(model)
    squares = [np.asarray(Image.open(io.BytesIO(png(seed)))) for seed in seeds]
    with torch.no_grad():
        found = network.represent({"image": torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)})
    return found[layer or list(found)[-1]].numpy()


def vectors(out: Path) -> np.ndarray:
    column = pq.read_table(out)["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def test_a_folder_becomes_one_row_per_picture_equal_to_represent(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source, out = pictures(tmp_path / "in", 21), tmp_path / "out.parquet"
    report = embed(str(model), str(source), out, batch_size=8, progress=lambda *counts: seen.append(counts))
    table = pq.read_table(out)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), report.dim)
    assert [Path(uri).name for uri in table["uri"].to_pylist()] == [f"{i:03d}.png" for i in range(21)]
    assert len(set(table["hash"].to_pylist())) == 21
    np.testing.assert_allclose(vectors(out), expected(model, list(range(21))), atol=1e-5)
    assert (report.rows, report.refused, report.quarantine) == (21, 0, None)
    assert seen == [(8, 0), (16, 0), (21, 0)]
    assert [path.name for path in tmp_path.iterdir() if "part" in path.suffix] == []


def test_bad_files_are_listed_beside_the_output_and_the_rest_is_embedded(model: Path, tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 3)
    (source / "empty.png").write_bytes(b"")
    (source / "noise.jpg").write_bytes(np.random.default_rng(0).bytes(500))
    (source / "cut.png").write_bytes(png(9, 64, 64)[:2_000])
    report = embed(str(model), str(source), tmp_path / "out.parquet")
    assert (report.rows, report.refused) == (3, 3) and report.quarantine is not None
    refused = pq.read_table(report.quarantine).to_pylist()
    assert {Path(row["uri"]).name for row in refused} == {"empty.png", "noise.jpg", "cut.png"}
    assert all(row["reason"] and row["message"] for row in refused)
    for name in ("empty.png", "noise.jpg", "cut.png"):
        (source / name).unlink()
    again = embed(str(model), str(source), tmp_path / "out.parquet")
    assert again.quarantine is None and not report.quarantine.exists()


def test_a_corpus_is_embedded_by_its_name_path_or_uri(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEXT_HOME", str(tmp_path))
    corpus, rows = corpus_of("digits", range(9))
    monkeypatch.chdir(Path(corpus.uri).parent)
    for i, source in enumerate([corpus.uri, f"{corpus.uri}/", "./digits", f"file://{corpus.uri}", "digits"]):
        if i == 4:
            monkeypatch.chdir(tmp_path)
        report = embed(str(model), source, tmp_path / f"{i}.parquet", batch_size=4)
        written = pq.read_table(report.out)
        assert written["uri"].to_pylist() == [entry["uri"] for entry in rows]
        assert written["hash"].to_pylist() == [entry["hash"] for entry in rows]
        np.testing.assert_allclose(vectors(report.out), expected(model, list(range(9))), atol=1e-5)


def test_a_name_that_is_a_corpus_and_a_folder_here_is_not_guessed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEXT_HOME", str(tmp_path / "home"))
    corpus, _ = corpus_of("digits", range(3))
    pictures(tmp_path / "digits", 2)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=f"digits names both a corpus and a local file .*; write ./digits, or {corpus.uri}"
    ):
        embed(str(model), "digits", tmp_path / "out.parquet")
    assert embed(str(model), "./digits", tmp_path / "out.parquet").rows == 2
    assert embed(str(model), corpus.uri, tmp_path / "out.parquet").rows == 3


def test_a_corpus_in_a_bucket_is_embedded(model: Path, tmp_path: Path, s3: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="bucket-embed")
    corpus_of("s3://bucket-embed/corpora/digits", range(3))
    report = embed(str(model), "s3://bucket-embed/corpora/digits", tmp_path / "out.parquet")
    np.testing.assert_allclose(vectors(report.out), expected(model, list(range(3))), atol=1e-5)


def corpus_of(name: str, seeds: Iterable[int]) -> tuple[Corpus, list[dict[str, object]]]:
    corpus, rows = Corpus.create(name, SampleFormat(size=SIDE)), [row(i) for i in seeds]
    with replacing(join(corpus.uri, "part.parquet")) as shard:
        write_shard(shard, pa.Table.from_pylist(rows, schema=SCHEMA))
        size = shard.stat().st_size
    table = delta.open_table(corpus.uri)
    assert table is not None
    delta.append(table, [delta.DataFile("part.parquet", len(rows), size)], {})
    return corpus, rows


def row(seed: int) -> dict[str, object]:
    payload = np.asarray(Image.open(io.BytesIO(png(seed)))).tobytes()
    geometry = {"payload": payload, "codec": "raw", "height": SIDE, "width": SIDE, "label": None, "batch": 1}
    return {"hash": f"{seed:064x}", "uri": f"/in/{seed}.png", "source_size": 1, "source_mtime": 0, **geometry}


def test_a_tar_a_glob_and_another_layer(model: Path, tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 4)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(source, "in")
    from_tar = embed(str(model), str(tmp_path / "all.tar"), tmp_path / "tar.parquet", layer="stage1")
    from_glob = embed(str(model), str(source / "00[01].png"), tmp_path / "glob.parquet", layer="stage1")
    assert (from_tar.rows, from_glob.rows) == (4, 2) and from_tar.layer == "stage1"
    np.testing.assert_allclose(vectors(from_tar.out), expected(model, [0, 1, 2, 3], "stage1"), atol=1e-5)
    np.testing.assert_allclose(vectors(from_glob.out), vectors(from_tar.out)[:2], atol=1e-5)


def test_pictures_of_any_shape_are_cut_to_the_encoder_s_square(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i, (width, height) in enumerate(((40, 20), (20, 47), (8, 9), (16, 16))):
        (source / f"{i}.png").write_bytes(png(i, width, height))
    assert embed(str(model), str(source), tmp_path / "out.parquet").rows == 4


def test_a_source_without_media_writes_nothing(model: Path, tmp_path: Path) -> None:
    source, out = pictures(tmp_path / "in", 2), tmp_path / "out.parquet"
    embed(str(model), str(source), out)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    report = embed(str(model), str(tmp_path / "empty"), out)
    assert (report.rows, report.refused) == (0, 0) and pq.read_table(out).num_rows == 2


def test_a_source_of_which_nothing_can_be_used_is_an_error_with_the_reasons(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("1.png", "2.png"):
        (source / name).write_bytes(b"")
    (source / "3.png").write_bytes(b"no picture")
    with pytest.raises(EmbedError, match=rf"no file of {source} could be used \(empty 2, unsupported 1\)"):
        embed(str(model), str(source), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.quarantine.parquet").num_rows == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.quarantine.parquet"]


def test_what_cannot_be_found_is_named_and_leaves_no_output(model: Path, tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 2)
    with pytest.raises(StorageError, match="nowhere"):
        embed(str(model), str(tmp_path / "nowhere"), tmp_path / "out.parquet")
    with pytest.raises(ValueError, match="stage4"):
        embed(str(model), str(source), tmp_path / "out.parquet", layer="stage9")
    with pytest.raises(ValueError, match="no encoder of pretext"):
        embed(str(source), str(source), tmp_path / "out.parquet")

    def fail(*counts: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        embed(str(model), str(source), tmp_path / "out.parquet", progress=fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("last", [1, 3])  # the quarantine comes first, of two syncs; then the output
def test_a_full_disk_leaves_the_output_of_before_whichever_file_it_strikes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    source, out = pictures(tmp_path / "in", 2), tmp_path / "out.parquet"
    (source / "bad.png").write_bytes(b"")
    embed(str(model), str(source), out)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert len(before) == 2
    (source / "more.png").write_bytes(png(7))
    sync, synced = os.fsync, []

    def fill_up(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == last:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(OSError, match="No space left"):
        embed(str(model), str(source), out)
    assert len(synced) == last and out.read_bytes() == before["out.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", *sorted(before)]


def test_what_a_killed_one_left_beside_the_output_goes_after_a_day(model: Path, tmp_path: Path) -> None:
    source, out = pictures(tmp_path / "in", 1), tmp_path / "out.parquet"
    left, young, foreign = (tmp_path / f".{name}.part" for name in ("out.parquet." + "0" * 16, "x." + "1" * 16, "film"))
    for path in (left, young, foreign):
        path.touch()
        if path != young:
            os.utime(path, (1e9, 1e9))
    embed(str(model), str(source), out)
    assert not left.exists() and young.exists() and foreign.exists()


def test_the_output_is_neither_a_folder_nor_the_source(model: Path, tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 1)
    with pytest.raises(ValueError, match="is a folder; name the Parquet file"):
        embed(str(model), str(source), tmp_path)
    picture = source / "000.png"
    with pytest.raises(ValueError, match="is the source"):
        embed(str(model), str(picture), picture)
    with pytest.raises(ValueError, match="is no Parquet file"):
        embed(str(model), str(source), picture)
    assert picture.read_bytes() == png(0)
    assert [path.name for path in tmp_path.parent.glob(".*.part")] == []
