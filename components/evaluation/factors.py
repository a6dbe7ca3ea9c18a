"""Factors of samples, such as a figure's hue, known from a file, and how well each can be read from a representation.

    columns file | part | shape | hue | ...  -> FactorTable;  with the URIs of the evaluated samples -> FactorTargets
    FactorTargets + features of every layer -> scores of each row and, for each source, of its best layer for a factor

`file` is the end of a sample's URI, by whole names: "train/arrow/000001.png" is .../shapes/train/arrow/000001.png, or
a member of .../shapes.tar. All columns but `file` and `part` are factors: text and booleans are names, numbers are
quantities, and numbers in a field with the metadata "period", such as {"period": "360"}, are points on a circle.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from components.evaluation.features import Features
from components.evaluation.result import Factor, Kind, Known, Row
from components.storage.files import absolute, read
from ssl_core.errors import InputError
from ssl_core.probes.factors import best_layers, on_circle, read_out

FILE, PART = "file", "part"
"""Columns that are not factors."""
FEWEST = {"training": 4, "test": 2}
"""Fewest samples of each part: half of the training part fits and half chooses; the test part needs a variance."""


class FactorsError(InputError):
    """The file of factors cannot be used; the message says why and what it should hold."""


@dataclass(frozen=True)
class FactorTable:
    """A file of factors.

    Attributes:
        uri: of the file.
        digest: SHA-256 of its bytes.
        table: its rows; it has a column `file`, whose values are unique.
    """

    uri: str
    digest: str
    table: pa.Table

    @classmethod
    def read(cls, uri: str) -> FactorTable:
        """From a local path or a URI.

        Raises:
            StorageError: it cannot be read.
            FactorsError: it does not exist, or is not a Parquet file of the form described above.
        """
        uri = absolute(uri)
        data = read(uri)
        if data is None:
            raise FactorsError(f"{uri}: there is no such file of factors; `evaluate.factors` names its place")
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowInvalid, OSError) as error:
            raise FactorsError(f"{uri} is not a Parquet file, so it has no factors; name one that is") from error
        _check(uri, table)
        return cls(uri, hashlib.sha256(data).hexdigest(), table)

    def names(self) -> tuple[str, ...]:
        """Names of the factors, in the order of the columns."""
        return tuple(_factors(self.table))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {file: row for row, file in enumerate(self.table[FILE].to_pylist())}

    def rows(self, uris: Sequence[str]) -> list[int]:
        """The row of each sample.

        Raises:
            FactorsError: samples have no row.
        """
        found = [self._row(uri) for uri in uris]
        lost = [uri for uri, row in zip(uris, found) if row is None]
        if lost:
            raise FactorsError(
                f"{self.uri} has no row for {len(lost):,} of {len(uris):,} samples, first {lost[0]}; its column "
                f"`{FILE}` holds the end of a sample's URI, such as {self.table[FILE][0].as_py()!r}"
            )
        return [row for row in found if row is not None]

    def _row(self, uri: str) -> int | None:
        """The row whose file is the longest end of the URI; None if there is none."""
        starts = (0, *(match.end() for match in re.finditer("[/!]", uri)))
        return next((self._places[uri[start:]] for start in starts if uri[start:] in self._places), None)


def _check(uri: str, table: pa.Table) -> None:
    if FILE not in table.column_names:
        columns = ", ".join(table.column_names)
        raise FactorsError(f"{uri} has no column `{FILE}` that names the sample of each row; it has {columns}")
    if not _is_text(table.schema.field(FILE).type) or table[FILE].null_count:
        raise FactorsError(f"{uri}: column `{FILE}` is not text in every row; write the end of a sample's URI")
    if len(table) < 2:
        raise FactorsError(f"{uri} has {len(table)} rows; factors of fewer than 2 samples cannot be evaluated")
    [(file, times)] = Counter(table[FILE].to_pylist()).most_common(1)
    if times > 1:
        raise FactorsError(f"{uri} has {times} rows for {file!r}; keep one")
    if not _factors(table):
        raise FactorsError(f"{uri} has no column beside `{FILE}` and `{PART}`, so no factors")
    for name in _factors(table):
        if not re.fullmatch(r"[\w .:-]+", name):
            raise FactorsError(
                f"{uri}: the factor {name!r} contains a character that MLflow does not accept; rename the column"
            )
        kind_of(uri, table.schema.field(name))


def _factors(table: pa.Table) -> list[str]:
    """Names of the columns that are factors; pandas' unnamed index is not one."""
    return [name for name in table.column_names if name not in (FILE, PART) and not name.startswith("__index_level_")]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def kind_of(uri: str, field: pa.Field) -> tuple[Kind, float]:
    """The kind of a column of the file at `uri`, and its period if it is a circle, else 0."""
    if _is_text(field.type) or pa.types.is_boolean(field.type):
        return "name", 0.0
    if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
        raise FactorsError(f"{uri}: the factor {field.name!r} is neither text nor numbers but {field.type}")
    text = (field.metadata or {}).get(b"period")
    if text is None:
        return "quantity", 0.0
    try:
        period = float(text)
    except ValueError:
        period = math.nan
    if not 0 < period < math.inf:
        raise FactorsError(f"{uri}: the period of {field.name!r} is {text.decode()!r}; write a number above 0")
    return "circle", period


@dataclass(frozen=True)
class FactorTargets:
    """Factors of the evaluated samples: the training part's are known, the test part's are targets.

    Attributes:
        kinds: factor -> "name", "quantity" or "circle".
        chance: factor -> the chance level.
        train: factor -> class indices of names [n], or quantities [n, k].
        test: the same for the test part; -1 for a name that the training part lacks.
    """

    kinds: Mapping[str, Kind]
    chance: Mapping[str, float]
    train: Mapping[str, Tensor]
    test: Mapping[str, Tensor]


def match_factors(table: FactorTable, train: Sequence[str], test: Sequence[str]) -> FactorTargets:
    """The factors of the samples with these URIs.

    Raises:
        FactorsError: samples have no row or no value, there are too few, or a factor is the same for all.
    """
    for part, uris in (("training", train), ("test", test)):
        if len(uris) < FEWEST[part]:
            raise FactorsError(f"factors need at least {FEWEST[part]} {part} samples; there are {len(uris)}")
    rows = table.rows(train), table.rows(test)
    _check_apart(table, [*train, *test], [*rows[0], *rows[1]])
    kinds, chance, known, targets = {}, {}, {}, {}
    for name in table.names():
        kinds[name], period = kind_of(table.uri, table.table.schema.field(name))
        values = [_values(table, name, part) for part in rows]
        _check_varied(table.uri, name, kinds[name], values)
        if kinds[name] == "name":
            classes = sorted(set(values[0]))
            chance[name] = 1 / len(classes)
            number = {text: place for place, text in enumerate(classes)}
            known[name], targets[name] = (torch.tensor([number.get(text, -1) for text in part]) for part in values)
        else:
            chance[name] = 0.0
            known[name], targets[name] = (_quantity(torch.tensor(part, dtype=torch.float64), period) for part in values)
    return FactorTargets(kinds, chance, known, targets)


def _check_apart(table: FactorTable, uris: Sequence[str], rows: Sequence[int]) -> None:
    """Raises FactorsError if a row matches several samples: its file is too short an end of a URI."""
    owner: dict[int, str] = {}
    for uri, row in zip(uris, rows):
        if owner.setdefault(row, uri) != uri:
            file = table.table[FILE][row].as_py()
            raise FactorsError(
                f"{table.uri}: {file!r} is the end of both {owner[row]} and {uri}; write more of the paths"
            )


def _values(table: FactorTable, name: str, rows: Sequence[int]) -> list[Any]:
    """The values of one factor; raises FactorsError if one is missing or not finite."""
    values: list[Any] = table.table[name].take(pa.array(rows)).to_pylist()
    for row, value in zip(rows, values):
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            file = table.table[FILE][row].as_py()
            raise FactorsError(f"{table.uri}: the factor {name!r} of {file!r} is {value}; give it a value")
    return values


def _check_varied(uri: str, name: str, kind: Kind, values: Sequence[Sequence[Any]]) -> None:
    """Raises FactorsError if a factor is constant: a name on the training part, a quantity on either part."""
    parts = zip(("training", "test"), values[:1] if kind == "name" else values)
    for part, found in parts:
        if len(set(found)) < 2:
            raise FactorsError(
                f"{uri}: the factor {name!r} is {found[0]!r} for all {len(found):,} {part} samples, so there is "
                "nothing to read; leave it out"
            )


def _quantity(values: Tensor, period: float) -> Tensor:
    return on_circle(values, period) if period else values.unsqueeze(1)


def score_factors(
    rows: Sequence[Row], train: Mapping[str, Features], test: Mapping[str, Features], targets: FactorTargets, seed: int
) -> tuple[list[Row], dict[str, Factor]]:
    """The rows with their score for each factor, and the factors with what each source knows, as in `Evaluation`.

    train, test: source, as in `Row` -> features of that part.
    """
    scores, known = {}, {}
    for source in train:
        layers, test_layers = (features[source].layers for features in (train, test))
        device = next(iter(layers.values())).device
        train_y, test_y = ({name: y.to(device) for name, y in part.items()} for part in (targets.train, targets.test))
        found = {layer: read_out(x, train_y, test_layers[layer], test_y, seed) for layer, x in layers.items()}
        chosen = best_layers(layers, train_y, seed)
        scores[source], known[source] = found, {name: Known(at, found[at][name]) for name, at in chosen.items()}
    factors = {
        name: Factor(kind, targets.chance[name], {source: each[name] for source, each in known.items()})
        for name, kind in targets.kinds.items()
    }
    return [replace(row, factors=scores[row.source][row.layer]) for row in rows], factors
