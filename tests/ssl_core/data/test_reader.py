"""What a rank reads is a function of (digest, seed, epoch, world, cursor) and of nothing else; threads come and go."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import torch
from corpora import corpus, pixels, rows

from ssl_core.data import images
from ssl_core.data.reader import Batch, Cursor, Reader, ReadError, Sampler
from ssl_core.data.shards import SCHEMA, Shards, class_names
from ssl_core.types import Field

SMALL = {"image": Field("image", (3, 8, 8))}
SIZES = [(12, 16), (12, 20), (14, 12)]
N = 101


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """101 raw images of three sizes in three shards; sample i was drawn with seed i."""
    tables = [
        rows([SIZES[i % 3] for i in range(first, last)], first=first) for first, last in ((0, 40), (40, 97), (97, N))
    ]
    return corpus(tmp_path, tables)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


def reader(shards: Shards, **changes: Any) -> Reader:
    order = {field.name for field in dataclasses.fields(Sampler)}
    settings: dict[str, Any] = {"batch_size": 4, "seed": 1, "digest": "d"} | changes
    sampler = Sampler(**{name: settings.pop(name) for name in order & settings.keys()})
    return Reader(shards, settings.pop("sample", SMALL), sampler, **settings)


def take(count: int, shards: Shards, **changes: Any) -> list[Batch]:
    with reader(shards, **changes) as opened:
        return list(islice(opened, count))


def ids(batches: list[Batch]) -> list[list[int]]:
    return [batch.ids.tolist() for batch in batches]


def assert_same(some: list[Batch], others: list[Batch]) -> None:
    assert ids(some) == ids(others)
    assert [batch.cursor for batch in some] == [batch.cursor for batch in others]
    for one, other in zip(some, others):
        assert torch.equal(one.raw["image"], other.raw["image"])


def crop_of(batch: Batch, j: int) -> tuple[int, int]:
    """Where in its image a sample of a batch was cut, found by looking for it."""
    i = int(batch.ids[j])
    image, cut = pixels(*SIZES[i % 3], i), batch.raw["image"][j].permute(1, 2, 0).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(image, cut.shape)[:, :, 0]
    (found,) = np.argwhere((windows == cut).all(axis=(2, 3, 4))).tolist()
    return found[0], found[1]


def test_an_epoch_shuffles_all_samples_and_drops_the_incomplete_batch(shards: Shards) -> None:
    batches = take(50, shards)
    epochs = [np.concatenate([batch.ids for batch in batches[start : start + 25]]) for start in (0, 25)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 100
        assert set(epoch) <= set(range(N))
    assert epochs[0].tolist() != epochs[1].tolist()
    after = [Cursor(*divmod(number, 25)) for number in range(1, 51)]
    assert [batch.cursor for batch in batches] == after


def test_the_order_depends_on_seed_and_digest(shards: Shards) -> None:
    orders = [ids(take(25, shards, **change)) for change in ({}, {"seed": 2}, {"digest": "e"})]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("change", [{"threads": 1}, {"threads": 5}, {"prefetch": 1}, {"prefetch": 9}])
def test_threads_change_nothing_in_what_is_read(shards: Shards, change: dict[str, int]) -> None:
    assert_same(take(40, shards), take(40, shards, **change))


@pytest.mark.parametrize("world", [2, 4])
def test_the_slices_of_the_ranks_make_up_the_global_batch(shards: Shards, world: int) -> None:
    whole = take(30, shards, batch_size=8)
    parts = [take(30, shards, batch_size=8 // world, rank=rank, world=world) for rank in range(world)]
    for alone, *split in zip(whole, *parts):
        assert np.array_equal(np.concatenate([batch.ids for batch in split]), alone.ids)
        assert torch.equal(torch.cat([batch.raw["image"] for batch in split]), alone.raw["image"])
        assert {batch.cursor for batch in split} == {alone.cursor}


@pytest.mark.parametrize("at", [0, 1, 13, 23, 24, 25, 31])
def test_a_resumed_reader_goes_on_bit_for_bit(shards: Shards, at: int) -> None:
    through = take(at + 30, shards)
    assert_same(take(30, shards, start=through[at - 1].cursor if at else Cursor()), through[at:])


def test_a_crop_is_part_of_its_image_at_a_place_of_its_own_each_epoch(shards: Shards) -> None:
    batches = take(50, shards)
    places: list[dict[int, tuple[int, int]]] = [{}, {}]
    for number, batch in enumerate(batches):
        places[number // 25] |= {int(i): crop_of(batch, j) for j, i in enumerate(batch.ids)}
    assert len(set(places[0].values())) > 30
    both = places[0].keys() & places[1].keys()
    assert sum(places[0][i] == places[1][i] for i in both) < len(both) / 4


NUMBERED = {**SMALL, "number": Field("index", (), limit=N)}


def test_a_sample_brings_its_number_and_looks_the_same_in_every_epoch(shards: Shards) -> None:
    batches, seen = take(60, shards, sample=NUMBERED), {}
    for batch in batches:
        assert batch.raw["number"].dtype == torch.int64
        assert batch.raw["number"].tolist() == batch.ids.tolist()
        for number, picture in zip(batch.raw["number"].tolist(), batch.raw["image"]):
            assert torch.equal(seen.setdefault(number, picture), picture)
    assert max(seen) < N and len({crop_of(batch, j) for batch in batches[:25] for j in range(4)}) > 30


def test_a_resumed_or_divided_reader_gives_the_same_numbers(shards: Shards) -> None:
    through = take(30, shards, sample=NUMBERED)
    assert_same(take(17, shards, sample=NUMBERED, start=through[12].cursor), through[13:])
    parts = [take(30, shards, sample=NUMBERED, batch_size=2, rank=rank, world=2) for rank in range(2)]
    for alone, *split in zip(through, *parts):
        assert torch.equal(torch.cat([batch.raw["number"] for batch in split]), alone.raw["number"])


def test_only_training_is_bound_to_as_many_samples_as_the_task_tells_apart(shards: Shards) -> None:
    few = {**SMALL, "number": Field("index", (), limit=100)}
    with pytest.raises(
        ValueError, match="has 100 classes, one per sample, and the corpus has 101 samples; raise the task's classes"
    ):
        reader(shards, sample=few)
    numbers = torch.cat([batch.raw["number"] for batch in take(26, shards, sample=few, train=False)])
    assert numbers.tolist() == list(range(N))


CLASSES = {**SMALL, "label": Field("label", (), limit=3)}


@pytest.fixture
def classes(tmp_path: Path) -> Shards:
    """101 images in three shards, the second of which lacks a class; sample i is labelled as `label_of` says."""
    tables = [rows([(12, 12)] * (last - first), first=first) for first, last in ((0, 40), (40, 42), (42, N))]
    for number, first in enumerate((0, 40, 42)):
        labels = pa.array([label_of(first + j) for j in range(len(tables[number]))])
        tables[number] = tables[number].set_column(8, SCHEMA.field("label"), labels)
    folder = tmp_path / "classes"
    folder.mkdir()
    return corpus(folder, tables)


def label_of(i: int) -> str:
    return ("10", "9", "cat")[i % 3]


def test_labels_are_numbered_digits_by_value_and_then_by_letter(classes: Shards) -> None:
    assert class_names(["b", "10", "9", "a", "9", "007"]) == ("9", "10", "007", "a", "b")
    assert class_names([]) == ()
    assert classes.classes.names == ("9", "10", "cat")
    assert classes.classes.numbers.tolist() == [(1, 0, 2)[i % 3] for i in range(N)]
    assert classes.classes is classes.classes


def test_a_sample_brings_the_number_of_its_class_and_still_looks_new_in_every_epoch(classes: Shards) -> None:
    batches = take(60, classes, sample={"label": CLASSES["label"], "image": Field("image", (3, 4, 4))})
    seen: dict[int, list[torch.Tensor]] = {}
    for batch in batches:
        assert batch.raw["label"].dtype == torch.int64
        assert batch.raw["label"].tolist() == [(1, 0, 2)[i % 3] for i in batch.ids.tolist()]
        for i, picture in zip(batch.ids.tolist(), batch.raw["image"]):
            seen.setdefault(i, []).append(picture)
    pairs = [crops[:2] for crops in seen.values() if len(crops) > 1]
    assert len(pairs) > 80 and sum(torch.equal(*pair) for pair in pairs) < len(pairs) / 8


def test_divided_and_central_reading_give_the_same_labels(classes: Shards) -> None:
    whole = take(12, classes, sample=CLASSES, batch_size=8)
    parts = [take(12, classes, sample=CLASSES, rank=rank, world=2) for rank in range(2)]
    for alone, *split in zip(whole, *parts):
        assert torch.equal(torch.cat([batch.raw["label"] for batch in split]), alone.raw["label"])
    labels = torch.cat([batch.raw["label"] for batch in take(26, classes, sample=CLASSES, train=False)])
    assert labels.tolist() == [(1, 0, 2)[i % 3] for i in range(N)]


def test_training_is_bound_to_the_corpus_s_classes_and_to_samples_with_a_label(shards: Shards, classes: Shards) -> None:
    for limit in (2, 4):
        other = {**SMALL, "label": Field("label", (), limit=limit)}
        with pytest.raises(ValueError, match=rf"has {limit} classes and the corpus has 3 \('9' to 'cat'\); "):
            reader(classes, sample=other)
        assert len(take(26, classes, sample=other, train=False)) == 26
    assert shards.classes.numbers[:4].tolist() == [-1, 0, 1, -1]
    with pytest.raises(ValueError, match=r"row 0 of shard .*000.parquet has none; train on a corpus .* with labels"):
        reader(shards, sample={**SMALL, "label": Field("label", (), limit=2)})


def test_a_crop_depends_on_seed_epoch_and_sample_but_not_on_its_batch(shards: Shards) -> None:
    def crops(**change: Any) -> dict[int, tuple[int, int]]:
        batches = take(12, shards, batch_size=8, **change)
        return {int(i): crop_of(batch, j) for batch in batches for j, i in enumerate(batch.ids)}

    one, other, reseeded = crops(), crops(digest="another order"), crops(seed=2)
    both = one.keys() & other.keys()
    assert len(both) > 80 and all(one[i] == other[i] for i in both)
    assert any(one[i] != reseeded[i] for i in one.keys() & reseeded.keys())


def test_crops_reach_every_place_and_the_corners(tmp_path: Path) -> None:
    shards = corpus(tmp_path, [rows([SIZES[i % 3] for i in range(3)])])
    seen: dict[int, set[tuple[int, int]]] = {i: set() for i in range(3)}
    for batch in take(400, shards, batch_size=3):
        for j, i in enumerate(batch.ids.tolist()):
            seen[i].add(crop_of(batch, j))
    for i, (height, width) in enumerate(SIZES):
        assert seen[i] == {(top, left) for top in range(height - 7) for left in range(width - 7)}


@pytest.mark.parametrize("size", [8, 64])
def test_small_crops_are_gathered_to_the_same_pixels(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of one width, so that the gather serves them; the last ends where its shard's payloads end."""
    shards = corpus(tmp_path, [rows([(size, size)] * 30, first=first) for first in (0, 30)])
    for side in (size, size - 3):
        sample = {"image": Field("image", (3, side, side))}
        monkeypatch.setattr(images, "GATHER_BYTES", 1 << 20)
        gathered = take(6, shards, batch_size=20, sample=sample)
        monkeypatch.setattr(images, "GATHER_BYTES", 0)
        assert_same(gathered, take(6, shards, batch_size=20, sample=sample))


def test_images_are_uint8_and_channels_last(shards: Shards) -> None:
    (batch,) = take(1, shards)
    image = batch.raw["image"]
    assert image.shape == (4, 3, 8, 8) and image.dtype == torch.uint8
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert batch.ids.dtype == np.int64


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_once_in_order_centred_and_keeps_the_rest(shards: Shards, world: int) -> None:
    batches = []
    for rank in range(world):
        with reader(shards, batch_size=8, train=False, rank=rank, world=world) as opened:
            mine = list(opened)
            assert len(mine) == opened.steps_per_epoch
        assert all(len(batch.ids) == 8 for batch in mine[:-1])
        batches += mine
    assert np.concatenate([batch.ids for batch in batches]).tolist() == list(range(N))
    for batch in batches:
        for j, i in enumerate(batch.ids.tolist()):
            height, width = SIZES[i % 3]
            assert crop_of(batch, j) == ((height - 8) // 2, (width - 8) // 2)


def test_evaluation_resumes_and_more_ranks_than_samples_read_nothing(tmp_path: Path, shards: Shards) -> None:
    whole = take(99, shards, batch_size=8, train=False)
    assert_same(take(99, shards, batch_size=8, train=False, start=whole[3].cursor), whole[4:])
    assert [len(take(9, shards, batch_size=8, train=False, rank=rank, world=200)) for rank in range(200)].count(1) == N


def test_jpeg_payloads_are_decoded_and_cut(tmp_path: Path) -> None:
    table = rows([(40, 50), (40, 64)] * 10, "jpeg")
    shards = corpus(tmp_path, [table])
    for batch in take(10, shards, train=False, sample={"image": Field("image", (3, 32, 32))}):
        for j, i in enumerate(batch.ids.tolist()):
            decoded = simplejpeg.decode_jpeg(table["payload"][i].as_py())
            left = (decoded.shape[1] - 32) // 2
            assert np.array_equal(batch.raw["image"][j].permute(1, 2, 0), decoded[4:36, left : left + 32])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_sample_that_cannot_be_read_is_named_when_its_batch_is_due(tmp_path: Path, threads: int) -> None:
    table = rows([(16, 16)] * 40, "jpeg")
    payloads = table["payload"].to_pylist()
    payloads[33] = payloads[33][:60] + b"\0" * 300
    table = table.set_column(4, table.schema.field("payload"), pa.array(payloads, pa.binary()))
    shards = corpus(tmp_path, [table.slice(0, 20), table.slice(20)])
    opened = iter(reader(shards, train=False, threads=threads))
    assert ids(list(islice(opened, 8))) == [list(range(first, first + 4)) for first in range(0, 32, 4)]
    with pytest.raises(ReadError, match=r"sample 33 \(row 13 of shard .*shard-001\.parquet\)"):
        next(opened)


def test_a_jpeg_of_another_size_than_its_row_says_is_named(tmp_path: Path) -> None:
    table = rows([(16, 16)] * 4, "jpeg")
    table = table.set_column(6, table.schema.field("height"), pa.array([16, 16, 17, 16], pa.int32()))
    with pytest.raises(ReadError, match=r"row 2 .* is 16x16, its row says 17x16"):
        take(1, corpus(tmp_path, [table]))


def test_a_batch_that_is_kept_never_changes_and_one_that_is_not_is_reused(shards: Shards) -> None:
    with reader(shards) as opened:
        kept, copies = [], []
        for batch in islice(opened, 40):
            kept.append(batch.raw["image"][1:3, 0])  # a view holds its batch
            copies.append(batch.raw["image"].clone()[1:3, 0])
        assert all(torch.equal(one, copy) for one, copy in zip(kept, copies))
        assert len({view.untyped_storage().data_ptr() for view in kept}) == 40
    assert len({batch.raw["image"].data_ptr() for batch in islice(reader(shards), 40)}) <= 8


def reading_threads() -> int:
    return sum(thread.name.startswith("reader") for thread in threading.enumerate())


def test_threads_end_with_the_loop_however_it_ends(shards: Shards) -> None:
    opened = reader(shards)
    for _ in opened:
        assert reading_threads()
        break
    assert not reading_threads()

    def fail() -> None:
        for _ in opened:
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not reading_threads()
    assert len(list(reader(shards, train=False))) == 26
    assert not reading_threads()


def test_a_closed_reader_says_so(shards: Shards) -> None:
    opened = reader(shards)
    batches = iter(opened)
    next(batches)
    opened.close()
    assert not reading_threads()
    for again in (batches, iter(opened)):
        with pytest.raises(RuntimeError, match="closed"):
            next(again)


def test_iterating_again_starts_again(shards: Shards) -> None:
    opened = reader(shards, start=Cursor(1, 3))
    assert_same(list(islice(opened, 5)), list(islice(opened, 5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 26, "world": 4}, "101 samples, fewer than one global batch of 104 .26 on each of 4 ranks"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"rank": 2, "world": 2}, "rank must be between 0 and 1"),
        ({"start": Cursor(2, 25)}, "step 25: an epoch has 25 steps"),
        ({"sample": {}}, "has no fields"),
        ({"sample": {"image": Field("image", (3, 13, 8))}}, "crops of 13x8 pixels, but row 0 of shard .* is 12x16"),
        ({"sample": {"image": Field("image", (1, 8, 8))}}, "RGB"),
        ({"sample": {"number": Field("index", (2,))}}, "one number, so a field of shape .2,."),
        ({"sample": {"label": Field("label", (2,))}}, "one label, so a field of shape .2,."),
        ({"sample": {"sound": Field("audio", (16_000,))}}, "'sound' is of modality 'audio'"),
    ],
)
def test_what_cannot_be_read_is_refused_before_reading(shards: Shards, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reader(shards, **change)


def test_one_image_that_is_too_small_is_named_when_it_is_due(tmp_path: Path) -> None:
    shards = corpus(tmp_path, [rows([*[(12, 12)] * 7, (6, 12)])])
    with pytest.raises(ValueError, match=r"row 7 of shard .* is 6x12"):
        take(2, shards)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_equal_those_in_memory(shards: Shards) -> None:
    for one, other in zip(take(60, shards, device="cuda"), take(60, shards)):
        assert one.raw["image"].is_cuda
        assert torch.equal(one.raw["image"].cpu(), other.raw["image"])
