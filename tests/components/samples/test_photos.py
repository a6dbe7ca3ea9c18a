import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_sample_image

from components.samples.photos import PHOTOS, TRAINED_ON, write_photos

COUNTS = {"unlabelled": 60, "train": 20, "test": 40}


def test_crops_show_what_their_table_says(tmp_path):
    assert write_photos(tmp_path, COUNTS, side=16, seed=2) == COUNTS
    table = pq.read_table(tmp_path / "crops.parquet").to_pylist()
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert sorted(row["file"] for row in table) == written and len(written) == 120
    for row in table:
        assert row["part"] == "unlabelled" or f"/{row['photo']}/" in row["file"]
        photo = load_sample_image(f"{row['photo']}.jpg").astype(float)
        region = photo[row["top"] : row["top"] + row["size"], row["left"] : row["left"] + row["size"]]
        assert region.shape[:2] == (row["size"], row["size"])
        with Image.open(tmp_path / row["file"]) as picture:
            assert picture.size == (16, 16)
            assert np.abs(np.asarray(picture, float).mean((0, 1)) - region.mean((0, 1))).max() < 4
    assert {row["photo"] for row in table} == set(PHOTOS)
    assert min(row["size"] for row in table) < 11 and max(row["size"] for row in table) > 35


def test_no_pixel_of_the_test_is_trained_on(tmp_path):
    write_photos(tmp_path, COUNTS, side=64)
    for row in pq.read_table(tmp_path / "crops.parquet").to_pylist():
        border = round(TRAINED_ON * 640)
        assert row["left"] >= border if row["part"] == "test" else row["left"] + row["size"] <= border


def test_the_same_seed_writes_the_same_crops_and_what_is_there_is_kept(tmp_path):
    write_photos(tmp_path / "a", {"unlabelled": 5}, side=16)
    write_photos(tmp_path / "b", {"unlabelled": 5}, side=16)
    first, again = (sorted((tmp_path / name).rglob("*.png")) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    before = [path.stat().st_mtime_ns for path in first]
    write_photos(tmp_path / "a", {"unlabelled": 5}, side=16)
    assert before == [path.stat().st_mtime_ns for path in first]
