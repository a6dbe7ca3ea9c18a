"""A corpus: a Delta table of shards, one row per canonical sample, every version readable for ever.

Layout below its root, which is a folder or a URI:
    _delta_log/                     the versions
    ingest-<id>/part-<digest>.parquet   shards, in the folder of the ingest that wrote them (see ingest/vacuum.py)
    _quarantine/                    a Delta table of what could not be used
    _ingests/<id>.json              the ingests that are running
A shard's name carries the digest of what is in it, so the digest of a version follows from the log alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from components.corpus import delta
from components.corpus.delta import DataFile, stream_columns
from components.storage.files import StorageError, absolute, download, is_remote, join, open_file, storage_errors
from components.storage.home import pretext_home
from components.storage.locks import exclusive
from ssl_core.atomic import sweep
from ssl_core.data.decode import SampleFormat
from ssl_core.data.shards import SCHEMA
from ssl_core.errors import InputError
from ssl_core.types import CorpusVersion

FORMAT = 1
QUARANTINE = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("hash", pa.string(), nullable=True),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime", pa.int64(), nullable=False),
        pa.field("batch", pa.int64(), nullable=False),
    ]
)
"""One row is one file that could not be used. `hash` is null where its bytes were not read (too many of them)."""


class CorpusError(InputError):
    """There is no such corpus or version, or it does not fit the request."""


@dataclass(frozen=True)
class Commit:
    """One version of a corpus.

    Attributes:
        version: its number.
        time: when it was committed.
        added: rows it added.
        sources: where the rows came from, as the user wrote it; a long list is cut, and ends with a count of the rest.
        ingest: id of the ingest that committed it; empty for the version that made the table.
    """

    version: int
    time: datetime
    added: int
    sources: tuple[str, ...]
    ingest: str


def corpus_uri(name_or_uri: str) -> str:
    """A bare name lies below the pretext home; anything with a slash is a path or URI as it is.

    Raises:
        CorpusError: the name cannot be that of a folder.
    """
    if "/" in name_or_uri:
        return absolute(name_or_uri)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name_or_uri):
        raise CorpusError(
            f"{name_or_uri!r} cannot name a corpus: use letters, digits, '.', '_' and '-', or a path with a '/'."
        )
    return str(pretext_home() / "corpora" / name_or_uri)


def corpora() -> list[str]:
    """Names of the corpora below the pretext home."""
    return sorted(log.parent.name for log in (pretext_home() / "corpora").glob("*/_delta_log"))


class Corpus:
    """A corpus at one version. Get it from `open` (an existing one) or `create` (made if missing)."""

    def __init__(self, uri: str, table: DeltaTable) -> None:
        self.uri = uri
        self._table = table
        about = delta.about(table)
        if about.get("pretext") != FORMAT:
            raise CorpusError(f"{uri} is a Delta table, but not a corpus of this version of pretext.")
        self.modality: str = about["modality"]
        self.sample_format = SampleFormat(**about["canon"])

    @classmethod
    def open(cls, name_or_uri: str, version: int | None = None) -> Corpus:
        """The corpus at `version`, the newest by default.

        Raises:
            CorpusError: there is no such corpus or version.
            StorageError: it cannot be read.
        """
        uri = corpus_uri(name_or_uri)
        try:
            table = delta.open_table(uri, version)
        except LookupError as error:
            raise CorpusError(f"Corpus {error}.") from error
        if table is None:
            raise CorpusError(f"There is no corpus at {uri}; `pretext ingest SOURCE --corpus {name_or_uri}` makes one.")
        return cls(uri, table)

    @classmethod
    def create(cls, name_or_uri: str, sample_format: SampleFormat, modality: str = "image") -> Corpus:
        """The newest version of the corpus, which is made if it does not exist.

        Raises:
            CorpusError: it exists with another sample format or modality.
            StorageError: it cannot be read or made.
        """
        uri = corpus_uri(name_or_uri)
        about = {"pretext": FORMAT, "modality": modality, "canon": asdict(sample_format)}
        table = delta.open_table(uri) or delta.create_table(uri, SCHEMA, about)
        corpus = cls(uri, table)
        if corpus.modality != modality:
            raise CorpusError(
                f"Corpus {uri} stores samples of kind {corpus.modality}, not {modality}: ingest into another corpus."
            )
        if not _same(corpus.sample_format, sample_format):
            raise CorpusError(
                f"Corpus {uri} stores {_described(corpus.sample_format)}, but {_described(sample_format)} were "
                "requested: request the stored format, or ingest into another corpus."
            )
        return corpus

    def __repr__(self) -> str:
        return f"Corpus({self.uri!r}, version={self.version})"

    @property
    def version(self) -> int:
        """Number of this version; 0 is the empty corpus."""
        return int(self._table.version())

    @property
    def size(self) -> int:
        """Short side of every sample, pixels."""
        return self.sample_format.size

    @property
    def payload(self) -> str:
        """ "raw" or "jpeg"."""
        return self.sample_format.payload

    def at(self, version: int) -> Corpus:
        """The same corpus at another version; raises CorpusError where there is none."""
        return self if version == self.version else Corpus.open(self.uri, version)

    def files(self) -> list[DataFile]:
        """The shards of this version, by name: the order in which `Shards` counts samples."""
        return delta.data_files(self._table)

    def count(self, version: int | None = None) -> int:
        """Samples, from the log alone."""
        return sum(file.rows for file in self._at(version).files())

    def digest(self, version: int | None = None) -> str:
        """Hex digest of the version's content, from the log alone: equal shards, equal digest, wherever they lie."""
        names = "\n".join(file.name for file in self._at(version).files())
        return hashlib.sha256(names.encode()).hexdigest()

    def pinned(self) -> CorpusVersion:
        """This version as a plain value."""
        return CorpusVersion(self.uri, self.version, self.digest(), self.count())

    def shards(self, version: int | None = None, cache: Path | None = None) -> list[Path]:
        """Local paths of the version's shards, by name; those of a remote corpus are downloaded once.

        Args:
            version: this one by default.
            cache: folder for shards of a remote corpus; <home>/cache/<table id> by default.

        Raises:
            StorageError: a shard is missing, or cannot be fetched whole.
        """
        files = self._at(version).files()
        if is_remote(self.uri):
            return self._fetched(files, cache or pretext_home() / "cache" / str(self._table.metadata().id))
        paths = [Path(self.uri) / file.path for file in files]
        for path, file in zip(paths, files):
            _check_shard(path, file, str(path))
        return paths

    def history(self) -> list[Commit]:
        """The versions up to this one, oldest first."""
        return sorted((_commit(entry) for entry in self._table.history()), key=lambda commit: commit.version)

    def quarantine(self) -> pa.Table:
        """The files that cannot be used, one row each (see `QUARANTINE`): the newest verdict, unless a later ingest
        could use the file."""
        rows = self.quarantined()
        if not len(rows):
            return rows
        newest = {uri: i for i, uri in enumerate(rows["uri"].to_pylist())}
        verdicts = {uri: rows["batch"][i].as_py() for uri, i in newest.items()}
        refused = pa.array(verdicts)
        for samples in self.columns(["uri", "batch"]):
            hit = samples.filter(pc.is_in(samples["uri"], refused))
            for uri, batch in zip(hit["uri"].to_pylist(), hit["batch"].to_pylist()):
                if batch >= verdicts[uri]:
                    newest.pop(uri, None)
        return rows.take(pa.array(sorted(newest.values()), pa.int64()))

    def quarantined(self) -> pa.Table:
        """Every verdict ever recorded, in the order of the ingests."""
        table = delta.open_table(self.quarantine_uri)
        files = [] if table is None else delta.data_files(table)
        found = [_read(join(self.quarantine_uri, file.path)) for file in files]
        return pa.concat_tables([QUARANTINE.empty_table(), *found]).sort_by(
            [("batch", "ascending"), ("uri", "ascending")]
        )

    @property
    def quarantine_uri(self) -> str:
        """Root of the quarantine's own Delta table."""
        return join(self.uri, "_quarantine")

    def columns(self, names: Sequence[str], files: Sequence[DataFile] | None = None) -> Iterator[pa.Table]:
        """The named columns of the shards (of all shards by default), some rows at a time; nothing else is read."""
        for file in self.files() if files is None else files:
            yield from stream_columns(join(self.uri, file.path), names)

    def _at(self, version: int | None) -> Corpus:
        return self if version is None else self.at(version)

    def _fetched(self, files: Sequence[DataFile], cache: Path) -> list[Path]:
        cache.mkdir(parents=True, exist_ok=True)
        paths = [cache / file.name for file in files]
        with exclusive(cache / ".lock", wait=24 * 3600):  # the workers of one machine fetch each shard once
            sweep(cache, older_than=0)
            for path, file in zip(paths, files):
                uri = join(self.uri, file.path)
                if not path.exists() or path.stat().st_size != file.size:  # a power cut may have emptied it
                    download(uri, path)
                _check_shard(path, file, uri)
        return paths


def _read(uri: str) -> pa.Table:
    with storage_errors(uri), open_file(uri) as file:
        return pq.read_table(file, schema=QUARANTINE)


def _check_shard(path: Path, file: DataFile, uri: str) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise StorageError(f"{uri}: the corpus names this shard, but it is gone; restore it from a copy.") from None
    if size != file.size:
        raise StorageError(
            f"{path}: {size} bytes, but shard {uri} was committed with {file.size}; restore or delete it."
        )


def _commit(entry: dict[str, Any]) -> Commit:
    time = datetime.fromtimestamp(entry["timestamp"] / 1000, UTC)
    sources = json.loads(entry.get("pretext.sources", "[]"))
    added = int(entry.get("pretext.rows", 0))
    return Commit(entry["version"], time, added, tuple(sources), entry.get("pretext.ingest", ""))


def _same(one: SampleFormat, other: SampleFormat) -> bool:
    quality = one.payload == "raw" or one.quality == other.quality
    return (one.size, one.payload) == (other.size, other.payload) and quality


def _described(sample_format: SampleFormat) -> str:
    quality = f" of quality {sample_format.quality}" if sample_format.payload == "jpeg" else ""
    return f"{sample_format.payload} images{quality} with short side {sample_format.size}"
