"""Append-only Delta tables whose writers take turns: an append that was overtaken is refused, not merged.

Delta accepts the blind appends of two writers. Ours carry one application id with a running number, and Delta refuses
the second of two concurrent commits with the same application id; so a writer has always seen every commit before its
own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, PostCommitHookProperties, RemoveAction, Transaction

from components.storage.files import StorageError, is_remote, open_file, storage_errors

APPLICATION = "pretext.ingest"


class OvertakenError(RuntimeError):
    """Another writer committed since this one read the table; read it again."""


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table: path below the table's root, rows, bytes."""

    path: str
    rows: int
    size: int

    @property
    def name(self) -> str:
        """The path's last part."""
        return self.path.rsplit("/", 1)[-1]


def open_table(uri: str, version: int | None = None) -> DeltaTable | None:
    """The table at a version, the newest by default; None where there is no table.

    Raises:
        StorageError: the table cannot be read.
        LookupError: there is a table, but not this version.
    """
    if not is_remote(uri) and not os.path.isdir(os.path.join(uri, "_delta_log")):
        return None
    with _storage(uri):
        try:
            table = DeltaTable(uri, storage_options=_options(uri))
        except TableNotFoundError:
            return None
        if version is not None and version != table.version():
            if not 0 <= version < table.version():
                raise LookupError(f"{uri} has versions 0 to {table.version()}, not {version}")
            table.load_as_version(version)
        return table


def create_table(uri: str, schema: pa.Schema, about: Mapping[str, Any]) -> DeltaTable:
    """Make the table with `about` as its description; if another writer was faster, theirs is returned, so check it."""
    if not is_remote(uri):
        with storage_errors(uri):
            os.makedirs(uri, exist_ok=True)
    with _storage(uri):
        try:
            options = _options(uri)
            description = json.dumps(about, sort_keys=True)
            return DeltaTable.create(uri, schema, description=description, storage_options=options)
        except DeltaError:
            table = open_table(uri)
            if table is None:
                raise
            return table


def about(table: DeltaTable) -> dict[str, Any]:
    """The description that `create_table` wrote; empty for a table that is not ours."""
    try:
        description = json.loads(table.metadata().description or "{}")
    except ValueError:
        return {}
    return description if isinstance(description, dict) else {}


def data_files(table: DeltaTable) -> list[DataFile]:
    """The files of the table's version, by name."""
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = (actions[name].to_pylist() for name in ("path", "num_records", "size_bytes"))
    return sorted((DataFile(*row) for row in zip(*columns)), key=lambda file: file.name)


def append(table: DeltaTable, files: Sequence[DataFile], info: Mapping[str, Any]) -> None:
    """Commit `files` on top of exactly the version that `table` has loaded.

    Raises:
        OvertakenError: another writer has committed since.
        StorageError: the table cannot be written.
    """
    actions: list[AddAction | RemoveAction] = [
        AddAction(f.path, f.size, {}, 0, True, json.dumps({"numRecords": f.rows})) for f in files
    ]
    turn = Transaction(APPLICATION, (table.transaction_version(APPLICATION) or 0) + 1)
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in info.items()}
    with _storage(table.table_uri):
        try:
            table.create_write_transaction(
                actions,
                "append",
                Schema.from_arrow(table.schema().to_arrow()),
                commit_properties=CommitProperties(custom_metadata=metadata, app_transactions=[turn]),
                # history is kept: a version stays readable however old it is
                post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
            )
        except CommitFailedError as error:
            raise OvertakenError(f"{table.table_uri}: {error}") from error


def stream_columns(uri: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of one Parquet file, 16,384 rows at a time."""
    with storage_errors(uri), open_file(uri) as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=16_384, columns=list(names)):
            yield pa.Table.from_batches([batch])


@contextmanager
def _storage(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, DeltaError) as error:
        words = " ".join(re.sub("\x1b\\[[0-9]*m|↳", " ", str(error)).split())
        reason = "permission denied; check the credentials: " if " 403 " in words or "Forbidden" in words else ""
        raise StorageError(f"{uri}: {reason}{words[:300]}") from error


def _options(uri: str) -> dict[str, str]:
    """Settings beyond the environment's: an endpoint that starts with http:// is used without TLS."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    if not uri.startswith(("s3://", "s3a://")) or not endpoint:
        return {}
    return {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
