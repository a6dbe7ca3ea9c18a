"""InfoNCE, forward and backward, against plain cross-entropy over the materialised matrix of scores.

    python tests/benchmarks/bench_info_nce.py [--rows 8192] [--dim 128] [--repeats 5]

8192 rows are two views of 4096 samples: 8192 queries against 8192 keys. Both sides start from the same unnormalised
views and end with their gradients. `nt_xent` is the loss of one process and uses the symmetry of the scores;
`info_nce` is the general loss, which ranks compute on gathered keys. Times are medians of alternating repetitions in
one process. Memory is the rise of the peak resident set over one pass, in a fresh process after a small pass. Linux
only.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.nn.contrast import info_nce, normalise, nt_xent

TEMPERATURE = 0.1
TIME_TARGET, MEMORY_TARGET, TOLERANCE = 0.6, 1 / 20, 1e-5


def plain(z1: Tensor, z2: Tensor) -> Tensor:
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scores = z @ z.T / TEMPERATURE
    scores.fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(2 * n).roll(n))


def symmetric(z1: Tensor, z2: Tensor) -> Tensor:
    return nt_xent(z1, z2, TEMPERATURE).mean()


def general(z1: Tensor, z2: Tensor) -> Tensor:
    z = normalise(torch.cat([z1, z2]))
    own = torch.arange(len(z))
    return info_nce(z, z, own.roll(len(z1)), TEMPERATURE, exclude=own).mean()


SIDES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"plain": plain, "nt_xent": symmetric, "info_nce": general}


def views_of(rows: int, dim: int) -> Tensor:
    return torch.randn(2, rows // 2, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()


def one_pass(side: str, views: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and the gradient of both views."""
    loss = SIDES[side](*views.unbind())
    (gradient,) = torch.autograd.grad(loss, views)
    return loss.detach(), gradient


def peak_mib() -> float:
    """Peak resident set of this process; not from ru_maxrss, which a child inherits from its parent."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def print_memory(side: str, rows: int, dim: int) -> None:
    one_pass(side, views_of(512, dim))  # thread pools and buffers of the BLAS
    views = views_of(rows, dim)
    before = peak_mib()
    one_pass(side, views)
    print(peak_mib() - before)


def memory(side: str, arguments: argparse.Namespace) -> float:
    sizes = ["--rows", str(arguments.rows), "--dim", str(arguments.dim)]
    out = subprocess.run([sys.executable, __file__, "--memory-of", side, *sizes], check=True, stdout=subprocess.PIPE)
    return float(out.stdout)


def seconds(arguments: argparse.Namespace) -> dict[str, float]:
    views = views_of(arguments.rows, arguments.dim)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(arguments.repeats + 1):
        for side, taken in times.items():
            start = time.perf_counter()
            one_pass(side, views)
            if repeat:  # the first one warms up
                taken.append(time.perf_counter() - start)
    return {side: statistics.median(taken) for side, taken in times.items()}


def check_equal(arguments: argparse.Namespace) -> None:
    views = views_of(arguments.rows, arguments.dim)
    loss, gradient = one_pass("plain", views)
    for side in SIDES:
        ours, ours_gradient = one_pass(side, views)
        apart = float((ours - loss).abs() / loss)
        gradient_apart = float((ours_gradient - gradient).abs().max() / gradient.abs().max())
        print(f"{side:10} loss {ours:.6f}, off by {apart:.1e}; gradient off by {gradient_apart:.1e} of its largest")
        assert apart <= TOLERANCE and gradient_apart <= TOLERANCE, side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=SIDES)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory(arguments.memory_of, arguments.rows, arguments.dim)
        return
    print(f"{arguments.rows} x {arguments.rows} scores, d={arguments.dim}, {torch.get_num_threads()} threads")
    check_equal(arguments)
    peaks = {side: memory(side, arguments) for side in SIDES}
    taken = seconds(arguments)
    for side in SIDES:
        time_ratio, memory_ratio = taken[side] / taken["plain"], peaks[side] / peaks["plain"]
        print(f"{side:10} {taken[side]:6.3f} s ({time_ratio:.2f}) {peaks[side]:7.1f} MiB extra ({memory_ratio:.3f})")
    print(f"targets: time <= {TIME_TARGET}, extra memory <= {MEMORY_TARGET:.3f} of plain")


if __name__ == "__main__":
    main()
