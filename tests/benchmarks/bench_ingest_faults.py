"""SIGKILLs at random moments of ingest: nothing is lost, stored twice or left over.

    python tests/benchmarks/bench_ingest_faults.py [--kills 60] [--seed 0]

One corpus, one growing source, and three kinds of kill in turn:
  driver   SIGKILL to the ingesting process alone; its Ray goes on, and so may a task that is writing a shard
  all      SIGKILL to the ingesting process and to everything below it: its Ray, the workers, their decoders
  worker   SIGKILL to one Ray worker or decoder; the ingest should recover and end on its own
In every fourth round two ingests run at once, and one of them is killed. After the last kill one ingest runs to its
end, and every payload of the corpus is compared with the source byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from components.cluster import connect as cluster
from components.corpus.corpus import Corpus
from ssl_core.atomic import is_leftover
from ssl_core.data.decode import Limits, SampleFormat, decode

FORMAT = SampleFormat(size=8)
NEW_FILES = 24
INGEST = f"""
import sys
from components.ingest.commits import Committer
from components.ingest.ingest import ingest
from ssl_core.data.decode import SampleFormat

class Announced(Committer):
    def load_known(self, quarantine):
        print("at work", flush=True)
        super().load_known(quarantine)

import components.ingest.ingest
components.ingest.ingest.Committer = Announced
form = SampleFormat(size={FORMAT.size})
report = ingest(sys.argv[2:], sys.argv[1], sample_format=form, rows_per_shard=8, commit_seconds=0)
print(report, flush=True)
"""


def picture(rng: np.random.Generator) -> bytes:
    coded = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(coded, "PNG")
    return coded.getvalue()


def grow(source: Path, batch: int, rng: np.random.Generator, good: dict[str, bytes], bad: set[str]) -> None:
    """Adds pictures, a copy of an old one, a bad file, and a tar of pictures that are also in the folder."""
    new = [picture(rng) for _ in range(NEW_FILES)]
    for i, data in enumerate(new):
        (source / f"{batch}-{i}.png").write_bytes(data)
    good |= {hashlib.sha256(data).hexdigest(): data for data in new}
    (source / f"{batch}-copy.png").write_bytes(next(iter(good.values())))
    (source / f"{batch}-bad.png").write_bytes(b"bad %d" % batch)
    bad.add(str(source / f"{batch}-bad.png"))
    inside = [*new[:3], picture(rng), picture(rng)]
    good |= {hashlib.sha256(data).hexdigest(): data for data in inside}
    with tarfile.open(source / f"{batch}.tar", "w") as archive:
        for i, data in enumerate(inside):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def start(corpus: str, source: Path, address: str | None) -> subprocess.Popen[str]:
    environment = dict(os.environ)
    environment.pop("RAY_ADDRESS", None)
    if address:
        environment["RAY_ADDRESS"] = address
    return subprocess.Popen(
        [sys.executable, "-c", INGEST, corpus, str(source)], env=environment, stdout=subprocess.PIPE, text=True
    )


def wait_for_work(process: subprocess.Popen[str]) -> None:
    """Waits until Python and Ray have started, which is not what the kills test."""
    assert process.stdout
    process.stdout.readline()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(how: str, process: subprocess.Popen[str], workers_of: int, dice: random.Random) -> bool:
    """Kills; returns whether there was a process to kill."""
    if how == "driver":
        victims = family(process)[:1]
    elif how == "all":
        victims = family(process)
    else:
        below = psutil.Process(workers_of).children(recursive=True)
        victims = [p for p in below if _is_worker(p)]
        victims = dice.sample(victims, min(1, len(victims)))
    alive = process.poll() is None
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    return alive and bool(victims)


def _is_worker(process: psutil.Process) -> bool:
    """Whether it runs a task or decodes for one; the actor with the index and Ray's daemons cannot be replaced."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return bool(line) and (
        (line[0].startswith("ray::") and "DedupIndex" not in line[0] and "Agent" not in line[0]) or "-I" in line
    )


def verify(corpus: Corpus, good: dict[str, bytes], bad: set[str]) -> dict[str, int]:
    payloads: list[tuple[str, bytes]] = []
    for table in corpus.columns(["hash", "payload"]):
        payloads += zip(table["hash"].to_pylist(), table["payload"].to_pylist())
    counts = Counter(digest for digest, _ in payloads)
    wrong = sum(decode(good[h], Limits(), FORMAT).payload != payload for h, payload in payloads if h in good)
    refused = Counter(corpus.quarantined()["uri"].to_pylist())
    named = {Path(corpus.uri) / file.path for file in corpus.files()}
    root = Path(corpus.uri)
    shards = set(root.glob("ingest-*/*"))
    leftover = list(shards - named) + [p for p in root.rglob("*") if ".tmp" in p.name or is_leftover(p.name)]
    leftover += list(root.glob("_ingests/*"))
    return {
        "samples": len(payloads),
        "lost": len(good.keys() - counts.keys()),
        "twice": sum(n - 1 for n in counts.values()),
        "foreign": len(counts.keys() - good.keys()),
        "wrong payload": wrong,
        "quarantine lost": len(bad - refused.keys()),
        "quarantine twice": sum(n - 1 for n in refused.values()),
        "missing shards": len(named - shards),
        "left over": len(leftover),
    }


def main(kills: int, seed: int) -> dict[str, int | str]:
    dice, rng = random.Random(seed), np.random.default_rng(seed)
    done: Counter[str] = Counter()
    good: dict[str, bytes] = {}
    bad: set[str] = set()
    spans = {"driver": 3.0, "all": 3.0, "worker": 3.0}
    with tempfile.TemporaryDirectory() as folder, cluster.connect():
        import ray

        address = ray.get_runtime_context().gcs_address
        source, corpus = Path(folder) / "source", str(Path(folder) / "corpus")
        source.mkdir()
        for batch in range(10 * kills):
            if sum(done.values()) >= kills:
                break
            grow(source, batch, rng, good, bad)
            how = "all" if batch % 4 == 0 else ("worker" if batch % 4 == 2 else "driver")
            process = start(corpus, source, None if how == "all" else address)
            other = start(corpus, source, address) if batch % 4 == 3 else None
            wait_for_work(process)
            began, delay = time.monotonic(), dice.uniform(0, spans[how])
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                done[how] += kill(how, process, os.getpid(), dice)
            process.wait(300)
            if process.returncode == 0:  # it ended before the kill, or recovered: next time kill within its whole run
                spans[how] = 0.5 * spans[how] + 0.5 * (time.monotonic() - began)
            else:
                spans[how] *= 1.02
            if other is not None:
                other.wait(300)
            print(f"round {batch}: {how} after {delay:.2f} s, exit {process.returncode}", file=sys.stderr, flush=True)
        last = start(corpus, source, address)
        report = last.communicate(timeout=600)[0].strip().splitlines()[-1]
        result = verify(Corpus.open(corpus), good, bad)
    return {
        "kills": sum(done.values()),
        **{f"kills of {k}": n for k, n in sorted(done.items())},
        **result,
        "final": report,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(main(arguments.kills, arguments.seed), indent=2))
