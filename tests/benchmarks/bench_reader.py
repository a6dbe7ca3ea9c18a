"""Reader against torch's DataLoader + PIL: 224 px crops of photo-like JPEGs, images per second, page cache warm.

    python tests/benchmarks/bench_reader.py [--images 1500] [--repetitions 5]

The peer is what a user would write: open, convert, resize the short side to 256, crop at random, 2 workers. Ours reads
the same files as ingest stores them (short side 256, payload raw or jpeg) with 2 threads. Repetitions alternate within
one run and read every image at least once; medians are printed. The last row reads 16 px images: the cost per sample.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_core.data.decode import Limits, SampleFormat, decode
from ssl_core.data.reader import Reader, Sampler
from ssl_core.data.shards import SCHEMA, SHARD_BYTES, Shards, write_shard
from ssl_core.types import Field

BATCH, SHORT, CROP, WORKERS = 64, 256, 224, 2
EPOCHS = {"raw": 8, "jpeg": 2}
PEER = "DataLoader + PIL"
TARGETS = {"raw": 15.0, "jpeg": 3.0}


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEG files of 500x375, 40 to 110 kB: random crops and flips of scikit-learn's two photographs."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    paths = []
    for number in range(count):
        photo = photos[number % len(photos)]
        width = int(photo.height * 4 / 3 * rng.uniform(0.6, 1.0))
        height = width * 3 // 4
        left, top = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
        cut = photo.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        paths.append(folder / f"{number:05d}.jpg")
        cut.save(paths[-1], quality=int(rng.integers(85, 97)))
    return paths


def ingest(paths: list[Path], folder: Path, sample_format: SampleFormat) -> Shards:
    """The decoder and the writer of an ingest, in this process."""
    folder.mkdir()
    with ThreadPoolExecutor(WORKERS) as pool:
        images = list(pool.map(lambda path: decode(path.read_bytes(), Limits(), sample_format), paths))
    return write([(image.payload, image.codec, image.height, image.width) for image in images], folder)


def write(images: list[tuple[bytes, str, int, int]], folder: Path) -> Shards:
    per_shard = max(1, SHARD_BYTES // max(len(image[0]) for image in images))
    for first in range(0, len(images), per_shard):
        payload, codec, height, width = zip(*images[first : first + per_shard])
        known = {"payload": payload, "codec": codec, "height": height, "width": width}
        empty = {field.name: "" if field.type == pa.string() else 0 for field in SCHEMA}
        columns = {name: known.get(name, [value] * len(payload)) for name, value in empty.items()}
        write_shard(folder / f"{first:06d}.parquet", pa.table(columns, schema=SCHEMA))
    return Shards.open(list(folder.iterdir()))


class Photos(Dataset[Tensor]):
    """The dataset that a user would write."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        scale = SHORT / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left = int(torch.randint(image.width - CROP + 1, ()))
        top = int(torch.randint(image.height - CROP + 1, ()))
        return torch.from_numpy(np.array(image.crop((left, top, left + CROP, top + CROP)))).permute(2, 0, 1)


def peer(paths: list[Path]) -> Iterator[Tensor]:
    """Endless batches of the DataLoader, whose workers persist between epochs."""
    loader = DataLoader(
        Photos(paths), batch_size=BATCH, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
    )
    while True:
        yield from loader


def ours(shards: Shards, side: int = CROP, batch: int = BATCH) -> Iterator[Tensor]:
    sample = {"image": Field("image", (3, side, side))}
    for read in Reader(shards, sample, Sampler(batch, seed=0, digest="benchmark"), threads=WORKERS):
        yield read.raw["image"]


def rate(batches: Iterator[Tensor], images: int, warm: int = 8) -> float:
    """Images per second over at least `images`, after a warm-up that does not count."""
    for _ in range(warm):
        size = len(next(batches))
    steps = -(-images // size)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * size / (time.perf_counter() - start)


def measure(paths: list[Path], corpora: dict[str, Shards], repetitions: int) -> dict[str, list[float]]:
    """Alternating repetitions; only one of the readers is alive at a time."""
    rates: dict[str, list[float]] = {PEER: [], **{f"Reader, {name}": [] for name in corpora}}
    epoch = -(-len(paths) // BATCH)
    for _ in range(repetitions):
        rates[PEER].append(rate(peer(paths), len(paths)))
        for name, shards in corpora.items():
            gc.collect()  # ends the workers of the peer
            rates[f"Reader, {name}"].append(rate(ours(shards), EPOCHS[name] * len(paths), warm=epoch))
    return rates


def small_images(folder: Path) -> float:
    """Samples per second of 20,000 images of 16x16."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 16 * 16 * 3), dtype=np.uint8)
    shards = write([(row.tobytes(), "raw", 16, 16) for row in pixels], folder)
    return statistics.median(rate(ours(shards, side=16, batch=256), 100_000) for _ in range(5))


def report(rates: dict[str, list[float]]) -> None:
    for name, values in rates.items():
        listed = ", ".join(f"{value:,.0f}" for value in values)
        print(f"{name:22} {statistics.median(values):8,.0f} images/s   ({listed})")
    for payload, target in TARGETS.items():
        ratios = [one / other for one, other in zip(rates[f"Reader, {payload}"], rates[PEER])]
        print(f"ratio {payload:4} {statistics.median(ratios):6.1f}   target {target:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        paths = write_photos(folder / "photos", arguments.images)
        size = statistics.median(path.stat().st_size for path in paths)
        print(f"{len(paths)} JPEGs of 500x375, median {size / 1e3:.0f} kB; {torch.get_num_threads()} cores", flush=True)
        corpora = {
            payload: ingest(paths, folder / payload, SampleFormat(SHORT, payload)) for payload in ("raw", "jpeg")
        }
        report(measure(paths, corpora, arguments.repetitions))
        print(f"Reader, 16 px raw      {small_images(folder / 'small'):8,.0f} images/s")


if __name__ == "__main__":
    main()
