"""Images per second from file bytes to the canonical sample, beside the plain Pillow loop a user would write.

    python tests/benchmarks/bench_decode.py [--seconds 3]

Plain Pillow: open, convert("RGB"), resize(BICUBIC), tobytes: no limits, no orientation, alpha dropped. `decode` does
all of that in this process, `sandbox` in its child. One image at a time; ratios are of medians over alternating rounds.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL.Image

from components.decoding.sandbox import Sandbox
from ssl_core.data.decode import Limits, SampleFormat, decode

FORMAT = SampleFormat(256)


def photo(height: int, width: int, seed: int) -> bytes:
    """A JPEG with the spectrum of a photo: blurred colour fields and some grain."""
    random = np.random.default_rng(seed)
    fields = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = PIL.Image.fromarray(fields).resize((width, height), PIL.Image.Resampling.BICUBIC)
    grain = random.normal(0, 5, (height, width, 1))
    pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def plain(data: bytes) -> bytes:
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    scale = FORMAT.size / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, PIL.Image.Resampling.BICUBIC).tobytes()


def rate(work: Callable[[bytes], object], files: list[bytes], seconds: float) -> float:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work(files[count % len(files)])
        count += 1
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per way and picture size")
    rounds, seconds = 5, parser.parse_args().seconds / 5
    with Sandbox(Limits(), FORMAT) as sandbox:
        ways = {"plain Pillow": plain, "decode": lambda data: decode(data, Limits(), FORMAT), "sandbox": sandbox.decode}
        for height, width, count in ((375, 500, 40), (1200, 1600, 8), (3000, 4000, 2)):
            files = [photo(height, width, seed) for seed in range(count)]
            sandbox.decode(files[0])
            rates = [{name: rate(way, files, seconds) for name, way in ways.items()} for _ in range(rounds)]
            medians = {name: statistics.median(row[name] for row in rates) for name in ways}
            figures = "   ".join(
                f"{name} {value:7.1f}/s ({value / medians['plain Pillow']:.2f}x)" for name, value in medians.items()
            )
            print(f"{width}x{height}  {figures}")


if __name__ == "__main__":
    main()
