"""What this machine can do, tested by doing it once: the probes behind `pretext doctor`."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def accelerators() -> list[str]:
    """Names of the GPUs that torch can use."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)]


def collective_backend() -> str:
    """Sums a tensor through torch.distributed and returns the backend that did it: nccl on a GPU, gloo on a CPU."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    backend = "nccl" if on_gpu else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=(Path(folder) / "store").as_uri(), rank=0, world_size=1)
        try:
            one = torch.ones(1, device="cuda" if on_gpu else "cpu")
            dist.all_reduce(one)
        finally:
            dist.destroy_process_group()
    return backend


def decode_in_sandbox() -> str:
    """Decodes one image of each lossless and lossy kind in the limited child process."""
    from components.decoding.sandbox import Sandbox
    from ssl_core.data.decode import Limits, SampleFormat

    picture = Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3))
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    with Sandbox(Limits(), SampleFormat(size=8)) as sandbox:
        for kind in kinds:
            coded = io.BytesIO()
            picture.save(coded, kind)
            sandbox.decode(coded.getvalue())
    return f"{', '.join(kinds)} in a limited child process"


def ray_answers() -> str:
    """Runs one task on the cluster that a run would use."""
    import ray

    from components.cluster.connect import connect

    started = time.monotonic()
    with connect():
        ray.get(ray.remote(num_cpus=0.1)(lambda: None).remote(), timeout=60)
        cpus = ray.cluster_resources().get("CPU", 0)
        nodes = len(ray.nodes())
    return f"{nodes} node(s), {cpus:g} CPUs, answered in {time.monotonic() - started:.0f} s"


def tracking_answers() -> str:
    """Searches for an experiment on the tracking server; an embedded database is made if missing."""
    from components.tracking.errors import tracking_errors, without_secrets
    from components.tracking.store import connect_tracking

    client, where = connect_tracking()
    with tracking_errors(where):
        client.search_experiments(max_results=1)
    return f"{without_secrets(where)} answers"
