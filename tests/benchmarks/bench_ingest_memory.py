"""Peak memory of ingest for two sizes of corpus: it must not grow with the corpus.

    python tests/benchmarks/bench_ingest_memory.py [--small 1000] [--large 6000]

Memory is the proportional set size (which counts a shared page once, such as one of the object store) of the
ingesting process and all its descendants: Ray's daemons and workers, decoders. Shards are cut at 16 MiB here, and the
object store is limited in proportion, so that the small corpus already fills both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

import components.ingest.ingest
from components.cluster import connect as cluster
from components.ingest.ingest import ingest
from ssl_core.data.decode import SampleFormat

SIZE = 256
ROWS_PER_SHARD = (16 << 20) // (SIZE * SIZE * 3)


class Peak:
    """Samples the memory of this process and its children, in MiB, while the block runs."""

    def __enter__(self) -> Peak:
        self.highest = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self.highest = max(self.highest, self._now())

    def _now(self) -> float:
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / 2**20


def pictures(folder: Path, count: int) -> Path:
    """Small files with large pictures, so that payloads would take most of the memory."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        coded = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(coded, "JPEG")
        (folder / f"{i}.jpg").write_bytes(coded.getvalue())
    return folder


def measure(root: Path, count: int) -> dict[str, float]:
    source = pictures(root / f"source-{count}", count)
    with Peak() as peak:
        began = time.monotonic()
        report = ingest(
            [str(source)],
            str(root / f"corpus-{count}"),
            sample_format=SampleFormat(size=SIZE),
            rows_per_shard=ROWS_PER_SHARD,
        )
        seconds = time.monotonic() - began
    assert report.added == count
    megabytes = count * SIZE * SIZE * 3 / 2**20
    return {
        "files": count,
        "payload MiB": round(megabytes),
        "peak MiB": round(peak.highest),
        "files/s": round(count / seconds),
    }


def main(small: int, large: int) -> dict[str, object]:
    components.ingest.ingest.STORE_BYTES = 6 * (16 << 20)
    with tempfile.TemporaryDirectory() as folder, cluster.connect():
        measure(Path(folder), 65)  # workers have started and imported before the first measurement
        one, other = measure(Path(folder), small), measure(Path(folder), large)
    return {"small": one, "large": other, "peak ratio": round(other["peak MiB"] / one["peak MiB"], 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=6000)
    arguments = parser.parse_args()
    print(json.dumps(main(arguments.small, arguments.large), indent=2))
