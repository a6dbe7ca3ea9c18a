"""Files or a corpus through a registered encoder, into Parquet.

    source -> sandboxed decoding at the encoder's size -> batches -> one layer -> uri, hash, embedding

Memory is bounded by a window of pictures, whatever the source holds. The output appears whole or not at all, and never
without a row. A file that cannot be used is a row of <out>.quarantine.parquet with a reason code; a storage error
stops everything, and names the URI.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from components.embed.output import Output, check_output
from components.embed.pictures import Picture, Reading, find_source, pictures_of
from components.registry.export import Loaded, input_of, load_artifact
from components.registry.fetch import fetch
from ssl_core.errors import InputError


class EmbedError(InputError):
    """There are files, and none could be embedded."""


@dataclass(frozen=True)
class EmbedReport:
    """What was embedded.

    Attributes:
        out: Parquet file with uri, hash and embedding (a list of `dim` float32); untouched if there are no rows.
        rows: of it.
        dim: numbers per picture.
        layer: of the encoder.
        refused: files that could not be used.
        quarantine: Parquet file that names them; None if there are none.
        seconds: duration.
    """

    out: Path
    rows: int
    dim: int
    layer: str
    refused: int
    quarantine: Path | None
    seconds: float


def embed(
    model_uri: str,
    source: str,
    out: Path,
    *,
    uri: str | None = None,
    layer: str | None = None,
    batch_size: int = 128,
    device: str | None = None,
    reading: Reading | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EmbedReport:
    """Embeds every picture of `source` with `model_uri`.

    model_uri: models:/NAME@champion, models:/NAME/3, runs:/RUN/encoder, or a model folder.
    source: a corpus, by name, path or URI, or what `pretext ingest` takes: a folder, glob, tar, Parquet column or URI.
    uri: of the MLflow server that has the model; default as in a recipe.
    layer: of the encoder; by default the best one in its evaluation.
    batch_size: pictures in a forward pass.
    device: to compute on; by default a GPU where there is one.
    reading: how files are read.
    progress: called with (embedded, refused) after every batch.

    Raises:
        InputError: the model has no such layer, or is none of ours; `out` is a folder, the source, or a file that is
            not Parquet; or the source names both a corpus and a local file or folder.
        EmbedError: every file was refused.
        TrackingError: there is no such model, or it cannot be fetched.
        StorageError: source or output cannot be read or written.
        CorpusError: a corpus of another version of pretext.
    """
    started = time.monotonic()
    check_output(Path(out), source)
    found = find_source(source)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pretext-embed-")))
        loaded = load_artifact(fetch(model_uri, cache / "model", uri), where, layer)
        pictures = stack.enter_context(pictures_of(found, loaded, reading or Reading(), batch_size))
        about = {"model": model_uri, "layer": loaded.layer}
        writer = stack.enter_context(Output(Path(out), loaded.layers[loaded.layer], about))
        for batch in _batched(pictures, batch_size):
            writer.write(batch, _vectors(loaded, batch, where))
            if progress is not None:
                progress(writer.rows, writer.refused)
    quarantine = writer.quarantine if writer.refused else None
    if quarantine and not writer.rows:
        why = ", ".join(f"{reason} {count:,}" for reason, count in writer.reasons.most_common())
        raise EmbedError(f"no file of {source} could be used ({why}); {quarantine} gives the reason for each")
    seconds = time.monotonic() - started
    return EmbedReport(Path(out), writer.rows, writer.dim, loaded.layer, writer.refused, quarantine, seconds)


def _batched(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    while batch := list(itertools.islice(pictures, size)):
        yield batch


@torch.no_grad()
def _vectors(loaded: Loaded, batch: Sequence[Picture], device: str) -> npt.NDArray[np.float32]:
    """Embeddings [n, d] of the pictures that have pixels; n may be 0."""
    squares = [picture.pixels for picture in batch if picture.pixels is not None]
    name, _ = input_of(loaded.task)
    if not squares:
        return np.empty((0, loaded.layers[loaded.layer]), np.float32)
    image = torch.from_numpy(np.stack(squares)).to(device).permute(0, 3, 1, 2)
    vectors: npt.NDArray[np.float32] = loaded.model.represent({name: image})[loaded.layer].float().cpu().numpy()
    return vectors
