"""The same task, corpus and seed give bit for bit the weights that they gave before.

weights.json holds digests that were recorded before the code was cut into rooms. They change only where a change is
meant to change what is learnt; then `python tests/test_same_weights.py` writes them anew, and the changelog says so.

The training runs in a process of its own, on one thread and without the instructions that only some CPUs have
(vector kernels, oneDNN), so that every x86 machine computes the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

RECORDED = Path(__file__).with_name("weights.json")
PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="recorded on x86, whose arithmetic others do not share")
def test_every_task_learns_the_weights_that_it_learnt_before() -> None:
    expected = json.loads(RECORDED.read_text())
    found = trained_elsewhere()
    changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    assert not changed, f"these learn other weights than before: {', '.join(changed)}"


def trained_elsewhere() -> dict[str, str]:
    """Name -> digest, from a process whose arithmetic is the same everywhere."""
    here = Path(__file__).resolve()
    paths = os.pathsep.join(map(str, (here.parents[1], here.parent)))
    done = subprocess.run(
        [sys.executable, str(here), "--print"],
        env=os.environ | PORTABLE | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=500,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def all_digests() -> dict[str, str]:
    """Every task at test size, three steps; the quickstart's recipe on the digits, with a running average."""
    import torch
    from small_tasks import SMALL, VITS, small

    from pipelines.loading import load_recipe
    from ssl_core.nn.encoders import EncoderSpec
    from ssl_core.train.run import Optim, Run, Train

    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    torch.set_num_threads(1)
    digests = {}
    for name in SMALL:
        vit = EncoderSpec("vit_tiny", width=0.25, **VITS.get(name, {}))
        encoder = vit if name in VITS else EncoderSpec("resnet18", width=0.125, stem="cifar", zero_init=False)
        task = small(name)
        run = Run(task, encoder, Optim(lr=0.05, scale_lr=False), Train(steps=3, batch_size=16, accumulate=1))
        digests[name] = digest_of_training(run)
    chosen = ["train.steps=4", "train.batch_size=32", "train.ema=0.9", "optim.warmup_steps=1"]
    digests["recipe digits"] = digest_of_training(load_recipe("digits", chosen).run())
    return digests


def digest_of_training(run: object) -> str:
    """Of the model's weights after a training on pictures that are always the same."""
    from typing import Any, cast

    from ssl_core.folder import WEIGHTS
    from ssl_core.train.loop import Folder, pretrain

    training = cast(Any, run)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shards = pictures(folder / "shards", training.task.sample)
        outcome = pretrain(training, shards, "a corpus", Folder(folder / "run", 1))
        assert outcome.status == "FINISHED", outcome
        return hashlib.sha256((folder / "run" / "model" / WEIGHTS).read_bytes()).hexdigest()[:32]


def pictures(folder: Path, sample: Mapping[str, object]) -> object:
    """32 pictures of two kinds of noise and four labels, a little larger than the task asks for."""
    from typing import Any, cast

    import numpy as np
    import pyarrow as pa

    from ssl_core.data.shards import SCHEMA, Shards, write_shard

    fields = cast("Mapping[str, Any]", sample).values()
    size = max(max(field.shape[1:]) for field in fields if field.modality == "image") + 2
    random = np.random.default_rng(0)
    pixels = random.integers(0, 120, (32, size, size, 3), dtype=np.uint8)
    pixels[:, : size // 2] += 100
    pixels[::2, :, size // 3 :] //= 2
    columns = {
        "hash": [f"{i:064x}" for i in range(32)],
        "uri": [f"/pictures/{i % 4}/{i}.png" for i in range(32)],
        "source_size": [1] * 32,
        "source_mtime": [0] * 32,
        "payload": [image.tobytes() for image in pixels],
        "codec": ["raw"] * 32,
        "height": [size] * 32,
        "width": [size] * 32,
        "label": [str(i % 4) for i in range(32)],
        "batch": [1] * 32,
    }
    folder.mkdir()
    write_shard(folder / "part-0.parquet", pa.table(columns, schema=SCHEMA))
    return Shards.open([folder / "part-0.parquet"])


if __name__ == "__main__":
    if "--print" in sys.argv:
        print(json.dumps(all_digests()))
    else:
        RECORDED.write_text(json.dumps(trained_elsewhere(), indent=1) + "\n")
