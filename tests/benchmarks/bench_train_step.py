"""A SimCLR training step, end to end, beside the plain loop that a user would write; images per second on a CPU.

    python tests/benchmarks/bench_train_step.py [--images 512] [--repetitions 3] [--stem imagenet] [--batch 256]

ResNet-18, two views of 96 px, from JPEGs of 500x375. The peer decodes and augments each sample in 2 DataLoader workers,
step by step as torchvision's transforms do it on Pillow images (Gaussian blur as a convolution of the tensor), and
trains a network of torch's own modules in float32 with SGD and NT-Xent as one cross-entropy.
Ours reads the same files as ingest stores them (short side 128, raw) and runs `ssl_core.train.loop` as it is: batched
augmentation, channels_last, bf16 where the CPU has instructions for it. Encoder, head, augmentations and batch are the
same: 256, the default of `train.batch_size`. Each side runs in processes of its own, in turns; the peer's loader is
endless, so that it never waits at the end of an epoch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from bench_augment import crop, turn_hue
from bench_reader import ingest, write_photos
from PIL import Image, ImageEnhance
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ssl_core.data.decode import SampleFormat
from ssl_core.data.shards import Shards
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.ops.images import IMAGENET_MEAN, IMAGENET_STD
from ssl_core.tasks.simclr import SimCLR
from ssl_core.train.loop import Folder, Point, pretrain
from ssl_core.train.run import Optim, Run, Runtime, Train

SIZE, CANVAS, STEPS, WARM, WORKERS = 96, 128, 8, 4, 2
TARGET = 3.0


class TwoViews(Dataset[tuple[Tensor, Tensor]]):
    """The dataset that a user would write: decode, square, two augmented views."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random.seed(int(torch.randint(2**31, ())))
        image = Image.open(self.paths[index]).convert("RGB")
        side = min(image.size)
        left, top = random.randint(0, image.width - side), random.randint(0, image.height - side)
        square = image.crop((left, top, left + side, top + side))
        return plain_view(square), plain_view(square)


def plain_view(image: Image.Image) -> Tensor:
    """One sample's view: crop, mirror, colour jitter in random order, grey, blur, to tensor, normalise."""
    image = crop(image, SIZE)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.8:
        steps = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None]
        random.shuffle(steps)
        for step in steps:
            image = step(image).enhance(random.uniform(0.2, 1.8)) if step else turn_hue(image)
    if random.random() < 0.2:
        image = image.convert("L").convert("RGB")
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    if random.random() < 0.5:
        x = plain_blur(x, random.uniform(0.1, 2))
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return x.sub(mean.view(-1, 1, 1)).div(std.view(-1, 1, 1))


def plain_blur(x: Tensor, sigma: float) -> Tensor:
    """Convolution with a square Gaussian kernel of a tenth of the side; borders are reflected."""
    radius = SIZE // 20
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = torch.outer(line / line.sum(), line / line.sum()).expand(3, 1, -1, -1)
    padded = F.pad(x[None], (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(padded, kernel, groups=3)[0]


def plain_model(stem: str) -> nn.Module:
    """Our network, with torch's convolution and the stem in its usual order."""
    torch.manual_seed(0)
    model = SimCLR(canvas=CANVAS, size=SIZE).build(EncoderSpec("resnet18", stem=stem).build)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
    if stem == "imagenet":
        convolution, norm, pool, relu = model.encoder.stem
        model.encoder.stem = nn.Sequential(convolution, norm, relu, pool)
    return model


def plain_loss(z: Tensor, temperature: float = 0.1) -> Tensor:
    z = F.normalize(z, dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z) // 2))


def peer_steps(paths: list[Path], stem: str, batch: int) -> Iterator[None]:
    """The loop that a user would write; yields once per step."""
    photos = TwoViews(paths)
    endless = RandomSampler(photos, num_samples=batch * (WARM + STEPS + 4 * WORKERS))
    loader = DataLoader(photos, batch, sampler=endless, num_workers=WORKERS)
    model = plain_model(stem)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for first, second in loader:
        optimizer.zero_grad()
        plain_loss(model(views=torch.cat([first, second]))).backward()
        optimizer.step()
        yield


def peer_rate(paths: list[Path], stem: str, batch: int) -> float:
    steps = peer_steps(paths, stem, batch)
    for _ in range(WARM):
        next(steps)
    began = time.perf_counter()
    for _ in range(STEPS):
        next(steps)
    return batch * STEPS / (time.perf_counter() - began)


def our_rate(shard_files: list[Path], stem: str, batch: int, precision: str) -> float:
    """The loop itself, with a point after the warm-up and one at the end."""
    train = Train(steps=WARM + STEPS, batch_size=batch, precision=precision)  # type: ignore[arg-type]
    runtime = Runtime(log_every=1, check_every=0)
    run = Run(SimCLR(canvas=CANVAS, size=SIZE), EncoderSpec("resnet18", stem=stem), Optim(lr=0.12), train, runtime)
    times: list[float] = []

    def note(point: Point) -> None:
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        pretrain(run, Shards.open(shard_files), "benchmark", Folder(Path(folder), 1), on_point=note)
    return batch * STEPS / (times[-1] - times[WARM - 1])


def alone(work: Callable[..., float], *arguments: object) -> float:
    """Calls a function in a fresh process, so that neither side inherits the other's memory or threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.exists() else ""
    return "avx512_bf16" in text or "amx_bf16" in text


def augmentation(batch: int) -> str:
    """The time that the two views take in one of our steps, in words; the rest is the network."""
    task = SimCLR(canvas=CANVAS, size=SIZE)
    raw = {"image": torch.randint(0, 256, (batch, CANVAS, CANVAS, 3), dtype=torch.uint8).permute(0, 3, 1, 2)}
    began = time.perf_counter()
    for _ in range(3):
        task.make_batch(raw, torch.Generator().manual_seed(0))
    seconds = (time.perf_counter() - began) / 3
    return f"make_batch {seconds * 1e3:.0f} ms for {batch} images"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--stem", choices=("imagenet", "cifar"), default="imagenet")
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()
    setting = (arguments.stem, arguments.batch)
    precision = "bf16" if has_bf16() else "fp32"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        paths = write_photos(folder / "photos", arguments.images)
        ingest(paths, folder / "raw", SampleFormat(CANVAS))
        shard_files = sorted((folder / "raw").iterdir())
        ours, theirs = [], []
        for _ in range(arguments.repetitions):
            theirs.append(alone(peer_rate, paths, *setting))
            ours.append(alone(our_rate, shard_files, *setting, precision))
            print(f"plain loop {theirs[-1]:.1f}, ssl_core.train {ours[-1]:.1f} images/s", flush=True)
        print(f"{arguments.stem} stem, batch {arguments.batch}, {torch.get_num_threads()} threads")
        print(f"ours: {precision}, channels_last; {augmentation(arguments.batch)}")
        for label, rates in (("plain loop", theirs), ("ssl_core.train", ours)):
            print(f"{label:15} {statistics.median(rates):7.1f} images/s   ({', '.join(f'{r:.1f}' for r in rates)})")
        ratio = statistics.median(one / other for one, other in zip(ours, theirs))
        print(f"ratio {ratio:.2f}   target {TARGET:.0f}")


if __name__ == "__main__":
    main()
