"""Ingest end to end on a real Ray and a real S3: what comes in, what stays out, and that nothing comes in twice."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import hostile
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from processes import ends

import components.ingest.ingest
from components.corpus import delta
from components.corpus.corpus import Corpus, CorpusError
from components.ingest.containers import ColumnError
from components.ingest.ingest import IngestReport, Progress, ingest
from components.ingest.sources import SourceOptions, parts
from components.ingest.stages import IngestJob, decode_files, list_parts
from components.storage.files import StorageError
from ssl_core.atomic import is_leftover
from ssl_core.data.decode import Limits, SampleFormat
from ssl_core.data.shards import Shards

FORMAT = SampleFormat(size=8)
# Ray Data copies its own context, and warns of its own deprecated settings while doing so.
pytestmark = pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning")


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    coded = io.BytesIO()
    Image.fromarray(pixels).save(coded, "PNG")
    return coded.getvalue()


def pictures(folder: Path, numbers: Sequence[int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(picture(number))
    return folder


def take(*sources: object, corpus: str = "c", labels: Literal["parent"] | None = None, **how: Any) -> IngestReport:
    files = [str(source) for source in sources]
    return ingest(files, corpus, **{"sample_format": FORMAT, "options": SourceOptions(labels), **how})


def uris(corpus: str = "c") -> list[str]:
    return [uri for table in Corpus.open(corpus).columns(["uri"]) for uri in table["uri"].to_pylist()]


def hashes(corpus: str = "c") -> list[str]:
    return [digest for table in Corpus.open(corpus).columns(["hash"]) for digest in table["hash"].to_pylist()]


def left_over(corpus: Corpus) -> list[Path]:
    """Files below the corpus that no version of it or of its quarantine names."""
    named = {Path(corpus.uri) / file.path for file in corpus.files()}
    return [p for p in Path(corpus.uri).glob("ingest-*/*") if p not in named] + [
        *Path(corpus.uri).glob("_ingests/*"),
        *Path(corpus.uri).glob("**/*.tmp"),
        *(path for path in Path(corpus.uri).glob("**/*") if is_leftover(path.name)),
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_comes_in_once(tmp_path: Path):
    source = tmp_path / "source"
    for label in ("cat", "dog"):
        pictures(source / label, range(100 if label == "dog" else 0, 150 if label == "dog" else 70))
    (source / "copy #1.png").write_bytes(picture(3))
    (source / "bad.png").write_bytes(b"no picture")
    (source / "same bad.png").write_bytes(b"no picture")
    (source / "notes.txt").write_text("x")
    told: list[Progress] = []
    first = take(source, labels="parent", progress=told.append)
    assert (first.seen, first.added, first.known, first.quarantined, first.skipped) == (123, 120, 1, 2, 1)
    assert (told[-1].seen, told[-1].added, told[-1].quarantined) == (123, 120, 2) and told[-1].rate > 0
    corpus = Corpus.open("c")
    shards = Shards.open(corpus.shards())
    assert len(shards) == corpus.count() == 120 and set(hashes()) == set(shards.hashes)
    assert set(shards.labels) - {"source"} == {"cat", "dog"}  # of two equal files either may give the label
    refused = corpus.quarantine().to_pylist()
    assert [(os.path.basename(r["uri"]), r["reason"], r["batch"]) for r in refused] == [
        ("bad.png", "unsupported", 1),
        ("same bad.png", "unsupported", 1),
    ]

    again = take(source)
    assert (again.version, again.added, again.known, again.quarantined) == (first.version, 0, 123, 0)
    assert Corpus.open("c").digest() == corpus.digest()

    shutil.move(source / "cat" / "1.png", source / "renamed.png")
    pictures(source, [1000])
    third = take(source)
    assert (third.version, third.added, third.known) == (first.version + 1, 1, 123)
    assert Corpus.open("c").history()[-1].sources == (str(source),)
    assert not left_over(Corpus.open("c"))


@pytest.mark.usefixtures("ray_cluster")
def test_the_same_sources_make_the_same_corpus(tmp_path: Path):
    pictures(tmp_path / "source", range(200))
    for name in ("one", "other"):
        take(tmp_path / "source", corpus=name, rows_per_shard=64)
    one, other = Corpus.open("one"), Corpus.open("other")
    assert len(one.files()) == 4 and [f.rows for f in one.files()].count(64) == 3
    assert one.digest() == other.digest()


@pytest.mark.usefixtures("ray_cluster")
def test_containers_come_in_beside_files_and_what_they_share_comes_in_once(tmp_path: Path):
    pictures(tmp_path / "source", range(5))
    with tarfile.open(tmp_path / "source" / "t.tar.gz", "w:gz") as archive:
        archive.add(pictures(tmp_path / "tarred", range(3, 10)), "x")
    column = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(8, 14)]
    pq.write_table(pa.table({"image": column}), tmp_path / "p.parquet")
    report = take(tmp_path / "source", tmp_path / "source" / "*.png", tmp_path / "p.parquet")
    assert (report.seen, report.added, report.known) == (18, 14, 4)
    assert len(set(hashes())) == 14
    assert take(tmp_path / "source", tmp_path / "p.parquet").added == 0


@pytest.mark.usefixtures("ray_cluster")
def test_hostile_files_end_in_quarantine_by_name(tmp_path: Path):
    source = pictures(tmp_path / "source", range(3))
    names = set()
    for name, data in hostile.hostile_files().items():
        name = f"{name}.jpg"  # some are called .txt and would be passed over
        (source / name).write_bytes(data)
        names.add(name)
    report = take(source)
    assert (report.added, report.quarantined) == (3, len(names))
    rows = Corpus.open("c").quarantine().to_pylist()
    assert {os.path.basename(row["uri"]) for row in rows} == names
    assert all("Traceback" not in row["message"] and "\n" not in row["message"] for row in rows)


@pytest.mark.usefixtures("ray_cluster")
def test_quarantine_is_retried_on_demand_and_left_by_a_mended_file(tmp_path: Path):
    source = pictures(tmp_path / "source", range(3))
    (source / "bad.png").write_bytes(picture(9)[:60])
    assert take(source).quarantined == 1
    assert take(source, retry_quarantined=True).quarantined == 0  # the verdict is the same
    assert len(Corpus.open("c").quarantine()) == 1
    (source / "bad.png").write_bytes(picture(9))
    assert take(source).added == 1
    assert len(Corpus.open("c").quarantine()) == 0


@pytest.mark.usefixtures("ray_cluster")
def test_an_empty_folder_is_nothing_to_do(tmp_path: Path):
    (tmp_path / "source").mkdir()
    report = take(tmp_path / "source")
    assert (report.version, report.seen, report.added) == (0, 0, 0)
    assert Corpus.open("c").count() == 0


@pytest.mark.usefixtures("ray_cluster")
def test_errors_of_the_user_come_as_one_sentence(tmp_path: Path):
    source = pictures(tmp_path / "source", range(3))
    take(source)
    with pytest.raises(CorpusError, match="short side 8, but raw images with short side 9"):
        take(source, sample_format=SampleFormat(size=9))
    with pytest.raises(StorageError, match=f"^{tmp_path}/none: there is no such file or folder"):
        take(tmp_path / "none")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "p.parquet")
    with pytest.raises(ColumnError, match=r"p\.parquet has no column of bytes; its columns are n\.$"):
        take(tmp_path / "p.parquet")


@pytest.mark.usefixtures("ray_cluster")
def test_a_storage_that_fails_stops_the_ingest_with_its_name_and_keeps_what_was_committed(tmp_path: Path):
    source = pictures(tmp_path / "source", range(130))
    (source / "zz.png").symlink_to("/proc/self/mem")  # a regular file that answers EIO
    refused = r"^.*/source/zz\.png: the device cannot be read or written; see the system log$"
    with pytest.raises(StorageError, match=refused):
        take(source, rows_per_shard=64, commit_seconds=0)
    (source / "zz.png").unlink()
    report = take(source)
    assert report.added + (report.known or 0) == 130 and len(set(hashes())) == 130
    assert not left_over(Corpus.open("c"))


@pytest.mark.usefixtures("ray_cluster")
def test_two_ingests_at_once_lose_nothing_and_double_nothing(tmp_path: Path):
    import ray

    home = os.environ["PRETEXT_HOME"]
    ranges = (range(200), range(100, 300))
    sources = [pictures(tmp_path / f"source{i}", numbers) for i, numbers in enumerate(ranges)]
    for i in range(2):
        (sources[i] / "bad.png").write_bytes(b"bad")

    def run(source: str) -> tuple[int, int]:
        os.environ["PRETEXT_HOME"] = home
        report = ingest([source], "c", sample_format=FORMAT, rows_per_shard=32, commit_seconds=0)
        return report.added, report.quarantined

    task = ray.remote(num_cpus=0)(run)
    reports = ray.get([task.remote(str(source)) for source in sources])
    assert sum(added for added, _ in reports) == 300
    assert len(hashes()) == len(set(hashes())) == 300
    corpus = Corpus.open("c")
    assert len(corpus.quarantine()) == 2
    assert len(corpus.shards()) == len(Shards.open(corpus.shards()).paths)
    take(tmp_path / "source0", tmp_path / "source1", sample_format=FORMAT)
    assert not left_over(Corpus.open("c"))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("moment", "call"), [("before", 1), ("after", 1), ("before", 2), ("after", 2)])
def test_an_ingest_that_dies_around_a_commit_is_finished_by_the_next(tmp_path: Path, moment: str, call: int):
    import ray

    source = pictures(tmp_path / "source", range(100))
    (source / "50bad.png").write_bytes(b"bad")
    home = os.environ["PRETEXT_HOME"]

    def run() -> None:
        os.environ["PRETEXT_HOME"] = home
        commit, calls = delta.append, []

        def dying(*args: Any) -> None:
            calls.append(args)
            if moment == "after" or len(calls) < call:
                commit(*args)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)

        delta.append = dying
        ingest([str(source)], "c", sample_format=FORMAT, rows_per_shard=32, commit_seconds=0)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ray.remote(num_cpus=0, max_retries=0)(run).remote())
    (record,) = Path(home, "corpora", "c", "_ingests").iterdir()
    with suppress(psutil.NoSuchProcess):  # Ray tells of its end a moment before it has ended
        assert ends(psutil.Process(json.loads(record.read_text())["pid"]), seconds=30)
    report = take(source)
    corpus = Corpus.open("c")
    assert report.added < 100 or (call, moment) == (1, "before")  # what was committed is not done again
    assert len(hashes()) == len(set(hashes())) == 100 and len(corpus.quarantine()) == 1
    assert not left_over(corpus)


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_ray_repeats_counts_nothing_twice(tmp_path: Path):
    source = pictures(tmp_path / "source", range(3))
    (source / "notes.txt").write_text("x")
    part = json.dumps(asdict(parts([str(source)])[0]))
    batch = pa.table({"number": [0], "part": [part]})
    with components.ingest.ingest._index() as index:
        job = IngestJob("", "", "", 1, FORMAT, SourceOptions(None, None, Limits()), index)
        (files,), (again,) = list(list_parts(batch, job)), list(list_parts(batch, job))
        assert len(files) == 3 and again.equals(files)
        (source / "1.png").unlink()
        assert [len(rows) for _ in range(2) for rows in decode_files(files, job)] == [2, 2]
        assert {name: job.call_index("counts")[name] for name in ("seen", "skipped", "vanished")} == {
            "seen": 3,
            "skipped": 1,
            "vanished": 1,
        }


@pytest.mark.usefixtures("ray_cluster")
def test_a_commit_names_few_of_very_many_sources(tmp_path: Path):
    files = sorted(pictures(tmp_path / "source", range(1025)).iterdir())
    assert take(*files).added == 1025
    (*first, last) = Corpus.open("c").history()[-1].sources
    assert first == [str(file) for file in files[:20]] and last == "… and 1,005 more"


@pytest.mark.usefixtures("ray_cluster")
def test_a_tar_in_a_tree_of_many_folders_is_work(tmp_path: Path):
    for i in range(70):  # more than become parts of their own
        (tmp_path / "source" / str(i) / "x").mkdir(parents=True)
    with tarfile.open(tmp_path / "source" / "7" / "x" / "t.tar", "w") as archive:
        archive.add(pictures(tmp_path / "tarred", range(3)), "x")
    assert take(tmp_path / "source").added == 3
    again = take(tmp_path / "source")
    assert (again.seen, again.added, again.known) == (3, 0, 3)


@pytest.fixture
def bucket(s3: str) -> str:
    import boto3

    name = f"bucket-{os.urandom(4).hex()}"
    client = boto3.client("s3", endpoint_url=s3)
    client.create_bucket(Bucket=name)
    for number in range(40):
        client.put_object(Bucket=name, Key=f"media/a b/{number} #%?.png", Body=picture(number))
    client.put_object(Bucket=name, Key="media/bad.png", Body=b"bad")
    return f"s3://{name}"


@pytest.mark.usefixtures("ray_cluster")
def test_a_bucket_comes_into_a_local_corpus(bucket: str):
    report = take(f"{bucket}/media", labels="parent")
    assert (report.seen, report.added, report.quarantined) == (41, 40, 1)
    assert f"{bucket}/media/a b/7 #%?.png" in uris()
    assert take(f"{bucket}/media").added == 0
    assert take(f"{bucket}/media/**/*.png").added == 0
    assert take(f"{bucket}/media/a b/7 #%?.png", corpus="single").added == 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_corpus_lives_in_a_bucket_and_its_shards_are_fetched_once(bucket: str, tmp_path: Path, home: Path):
    where = f"{bucket}/corpora/c"
    assert take(pictures(tmp_path / "source", range(30, 60)), f"{bucket}/media", corpus=where).added == 60
    corpus = Corpus.open(where)
    paths = corpus.shards()
    assert len(Shards.open(paths)) == 60 and all(home in path.parents for path in paths)
    times = [path.stat().st_mtime_ns for path in paths]
    assert [path.stat().st_mtime_ns for path in corpus.shards()] == times
    assert corpus.shards(cache=tmp_path / "cache")[0].parent == tmp_path / "cache"
    assert take(pictures(tmp_path / "source", [99]), f"{bucket}/media", corpus=where).added == 1
    assert Corpus.open(where).count() == 61 and len(corpus.quarantine()) == 1
    take(tmp_path / "source", corpus="local")
    with pytest.raises(CorpusError, match=f"no corpus at {bucket}/corpora/none"):
        Corpus.open(f"{bucket}/corpora/none")


@pytest.mark.usefixtures("ray_cluster")
def test_a_bucket_that_is_missing_or_refuses_is_named(s3: str):
    with pytest.raises(StorageError, match=r"^s3://no-such-bucket-here/x"):
        take("s3://no-such-bucket-here/x")
    with pytest.raises(StorageError, match=r"^s3://no-such-bucket-here/c"):
        take("/tmp", corpus="s3://no-such-bucket-here/c")
