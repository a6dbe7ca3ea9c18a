"""SIGKILLs at random moments of pretraining, workers and driver, against the uninterrupted run: the same bits.

    python tests/benchmarks/bench_train_faults.py [--kills 30] [--steps 400] [--seed 0]

Two workers train a small ResNet on 64 images of 16 px under Ray Train. At random moments either a worker is killed (Ray
restarts the group) or the driver (the same command starts again). Before about every fourth new start Ray's snapshot is
truncated or deleted. If a run ends before all kills are done, another one begins with another seed. At the end every
weight, optimizer state and the digest of all sample ids must equal those of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))  # before tests/ssl_core, which has the name of a package

from processes import running
from small_corpus import make_corpus

from components.cluster.connect import Cluster
from components.corpus.corpus import Corpus
from components.training.pretrain import pretrain
from components.training.run_folder import RunFolder
from components.training.snapshot import SNAPSHOT
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks.rotation import Rotation
from ssl_core.train import checkpoint
from ssl_core.train.run import Optim, Run, Runtime, Train


def drive(folder: Path, name: str, steps: int, seed: int) -> None:
    """The driver: one call of pretrain, which prints a line for every point."""
    encoder = EncoderSpec("resnet18", width=0.125, stem="cifar")
    train = Train(steps=steps, batch_size=16, seed=seed, ema=0.9)
    runtime = Runtime(checkpoint_every=10, log_every=1, check_every=0)
    run = Run(Rotation(canvas=16), encoder, Optim(lr=0.05, scale_lr=False), train, runtime)
    corpus = Corpus.open(str(folder / "corpus"))
    outcome = pretrain(
        run,
        corpus.pinned(),
        RunFolder(str(folder), name),
        Cluster(workers=2, max_failures=1000),
        sink=lambda point: print(point.step, flush=True),
    )
    print(outcome, flush=True)
    sys.exit(outcome.status != "FINISHED")


@dataclass
class Tally:
    """Counts of what was done to the runs."""

    workers: int = 0
    drivers: int = 0
    snapshots: int = 0
    starts: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.workers + self.drivers


def command(*arguments: object) -> list[str]:
    return [sys.executable, __file__, "--drive", *map(str, arguments)]


def disturbed(folder: Path, name: str, steps: int, seed: int, kills: int, tally: Tally, dice: random.Random) -> None:
    """Trains to the end, with kills at random moments."""
    log = folder / f"{name}.log"
    while True:
        tally.starts += 1
        with log.open("a") as out:
            driver = psutil.Popen(command(folder, name, steps, seed), stdout=out, stderr=subprocess.DEVNULL)
        while driver.poll() is None and tally.kills < kills:
            if _strike(driver, log, tally, dice):
                break
        if driver.wait() == 0:
            return
        harm_snapshot(folder / name / SNAPSHOT, tally, dice)


def _strike(driver: psutil.Popen, log: Path, tally: Tally, dice: random.Random) -> bool:
    """Kills at a random moment, true if the driver; a third of its kills come before any progress."""
    the_driver = dice.random() < 0.4
    if not (the_driver and dice.random() < 0.33):
        _wait_for_progress(driver, log)
    time.sleep(dice.uniform(0, 3))
    victims = [driver] if the_driver else running("RayTrainWorker", driver)
    if not victims or driver.poll() is not None:
        return False
    try:
        dice.choice(victims).kill()
    except psutil.NoSuchProcess:
        return False
    tally.drivers += the_driver
    tally.workers += not the_driver
    print(f"kill {tally.kills}: {'driver' if the_driver else 'worker'} at step {_last(log)}", flush=True)
    return the_driver


def _wait_for_progress(driver: psutil.Popen, log: Path) -> None:
    size = log.stat().st_size
    while driver.poll() is None and log.stat().st_size == size:
        time.sleep(0.02)


def _last(log: Path) -> str:
    return (log.read_text().splitlines() or ["0"])[-1]


def harm_snapshot(snapshot: Path, tally: Tally, dice: random.Random) -> None:
    if not snapshot.exists() or dice.random() > 0.25:
        return
    if dice.random() < 0.5:
        snapshot.unlink()
    else:
        snapshot.write_bytes(snapshot.read_bytes()[: dice.randrange(200)])
    tally.snapshots += 1


def assert_same(folder: Path, one: str, other: str, steps: int) -> None:
    """Weights, averages, optimizer state and sample ids of two finished runs, bit for bit."""
    (ours, our_meta), (theirs, their_meta) = (
        checkpoint.load(folder / name / checkpoint.name_of(steps)) for name in (one, other)
    )
    assert ours.keys() == theirs.keys()
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert not different, f"{len(different)} tensors differ: {different[:3]}"
    assert our_meta["ids_digests"] == their_meta["ids_digests"], "other samples were seen"
    steps_seen = [int(line) for line in (folder / f"{one}.log").read_text().split("\n") if line.isdigit()]
    assert sorted(set(steps_seen)) == list(range(1, steps + 1)), "a point is missing"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=4, metavar=("FOLDER", "NAME", "STEPS", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        folder, name, steps, seed = arguments.drive
        drive(Path(folder), name, int(steps), int(seed))
    dice, tally, began, runs = random.Random(arguments.seed), Tally(), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_corpus(folder / "corpus")
        while tally.kills < arguments.kills:
            disturbed(folder, f"run{runs}", arguments.steps, runs, arguments.kills, tally, dice)
            subprocess.run(
                command(folder, f"straight{runs}", arguments.steps, runs), check=True, stdout=subprocess.DEVNULL
            )
            assert_same(folder, f"run{runs}", f"straight{runs}", arguments.steps)
            runs += 1
    print(
        f"{tally.kills} SIGKILLs ({tally.workers} of workers, {tally.drivers} of drivers), {tally.snapshots} snapshots "
        f"truncated or deleted, {tally.starts} starts, {runs} runs of {arguments.steps} steps, "
        f"{time.monotonic() - began:.0f} s: weights, optimizer state and sample ids equal bit for bit"
    )


if __name__ == "__main__":
    main()
