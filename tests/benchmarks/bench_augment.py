"""SimCLR's two views: batched on the CPU by make_batch, and by the per-image Pillow loop that a user would write.

    python tests/benchmarks/bench_augment.py [images] [canvas] [size]

Both use one thread, start from decoded uint8 pixels and end in normalised float32 tensors; the ratio is images/s.
"""

import random
import sys
import time

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from ssl_core.ops.images import IMAGENET_MEAN, IMAGENET_STD
from ssl_core.tasks.simclr import SimCLR


def crop(image: Image.Image, size: int) -> Image.Image:
    side = image.width
    while True:
        area, ratio = random.uniform(0.08, 1) * side * side, 2 ** random.uniform(-0.415, 0.415)
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= side and h <= side:
            left, top = random.randint(0, side - w), random.randint(0, side - h)
            return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))


def turn_hue(image: Image.Image) -> Image.Image:
    h, s, v = image.convert("HSV").split()
    shifted = np.asarray(h, dtype=np.uint8) + np.uint8(random.randint(0, 255))
    return Image.merge("HSV", (Image.fromarray(shifted), s, v)).convert("RGB")


def view(image: Image.Image, size: int) -> np.ndarray:
    image = crop(image, size)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.8:
        steps = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None]
        random.shuffle(steps)
        for step in steps:
            image = step(image).enhance(random.uniform(0.2, 1.8)) if step else turn_hue(image)
    if random.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))
    pixels = np.asarray(image, dtype=np.float32) / 255
    return ((pixels - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)).transpose(2, 0, 1)


def seconds(work, repeats: int = 5) -> float:
    """The fastest of several runs, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    n, canvas, size = (int(value) for value in (*sys.argv[1:], *("256", "128", "96")[len(sys.argv) - 1 :]))
    torch.set_num_threads(1)
    task, rng = SimCLR(canvas=canvas, size=size), torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, canvas, canvas, 3), generator=rng, dtype=torch.uint8)
    raw = {"image": pixels.permute(0, 3, 1, 2)}
    pictures = [Image.fromarray(picture.numpy()) for picture in pixels]

    def loop() -> torch.Tensor:
        return torch.from_numpy(np.stack([view(picture, size) for _ in range(2) for picture in pictures]))

    ours, theirs = seconds(lambda: task.make_batch(raw, rng)), seconds(loop, 2)
    print(f"{n} images {canvas} px -> 2 views {size} px, one thread, images/s")
    print(f"make_batch {n / ours:8.0f}\nPillow     {n / theirs:8.0f}\nratio      {theirs / ours:8.2f}")


if __name__ == "__main__":
    main()
