"""The Parquet files that embedding writes: the embeddings, and beside them the files that were refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.embed.pictures import Picture
from ssl_core.atomic import replacing, sweep
from ssl_core.errors import InputError

REFUSED = pa.schema([(name, pa.string()) for name in ("uri", "hash", "reason", "message")])


def check_output(out: Path, source: str) -> None:
    """Checks, before the work begins, that `out` may be written.

    Raises:
        ValueError: it is a folder, the source, or a file that is not Parquet.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; name the Parquet file to write, such as {out / 'out.parquet'}")
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise InputError(f"{out} is the source; name another file to write")
    if out.is_file() and not _replaceable(out):
        raise InputError(f"{out} exists and is no Parquet file; delete it, or name another file to write")


def _replaceable(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) in (b"PAR1", b"")


class Output:
    """Both files; each appears once the block has ended well, if it has rows; else an older file stays.

    Attributes:
        out: Parquet file of uri, hash and embedding.
        quarantine: Parquet file of uri, hash, reason and message.
        rows: of `out`.
        reasons: code -> files refused for it.
    """

    def __init__(self, out: Path, dim: int, about: Mapping[str, str]) -> None:
        self.out, self.dim = out.absolute(), dim
        fields = [("uri", pa.string()), ("hash", pa.string()), ("embedding", pa.list_(pa.float32(), dim))]
        self.schema = pa.schema(fields, metadata={f"pretext.{key}": value for key, value in about.items()})
        self.quarantine = self.out.with_name(f"{self.out.stem}.quarantine.parquet")
        self.rows, self.reasons = 0, Counter[str]()
        self._files: dict[Path, pq.ParquetWriter] = {}
        self._ends = {self.out: ExitStack(), self.quarantine: ExitStack()}

    @property
    def refused(self) -> int:
        """Files that could not be used."""
        return self.reasons.total()

    def write(self, batch: Sequence[Picture], vectors: npt.NDArray[np.float32]) -> None:
        """Adds a batch: `vectors` [n, dim] are of its n pictures that have pixels."""
        good = [picture for picture in batch if picture.pixels is not None]
        bad = [picture for picture in batch if picture.pixels is None]
        if good:
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), self.dim)
            texts = [pa.array([getattr(p, name) for p in good], pa.string()) for name in ("uri", "hash")]
            self._write(self.out, pa.Table.from_arrays([*texts, flat], schema=self.schema))
        if bad:
            rows = [{"uri": p.uri, "hash": p.hash, "reason": p.reason, "message": p.message} for p in bad]
            self._write(self.quarantine, pa.Table.from_pylist(rows, REFUSED))
        self.rows += len(good)
        self.reasons.update(p.reason for p in bad)

    def _write(self, path: Path, table: pa.Table) -> None:
        if path not in self._files:
            temporary = self._ends[path].enter_context(replacing(path))
            self._files[path] = self._ends[path].enter_context(pq.ParquetWriter(temporary, table.schema))
        self._files[path].write_table(table)

    def __enter__(self) -> Output:
        sweep(self.out.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ends = ExitStack()
        ends.push(self._ends[self.out])  # last, and only if all before it went well, since it shows that all is done
        ends.push(self._ends[self.quarantine])
        if kind is None and self.rows and not self.refused:
            ends.callback(self.quarantine.unlink, missing_ok=True)
        ends.__exit__(kind, error, trace)
