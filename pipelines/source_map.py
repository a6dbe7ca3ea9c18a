"""YAML that remembers where each key comes from, so that an error can name file and line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ssl_core.errors import InputError

Path_ = tuple[str | int, ...]

MOST_NODES = 10_000
"""Keys and values of a recipe with its aliases written out: a few lines of YAML can stand for billions."""
DEEPEST = 50
NAMED: tuple[Path_, ...] = (("task",), ("encoder",))
"""Sections whose keys depend on their `name`: with another name, nothing of the base's section is kept."""
MERGE = "tag:yaml.org,2002:merge"


class YamlError(InputError):
    """The file is not YAML, or is YAML that cannot be a recipe."""


@dataclass
class SourceMap:
    """The plain data of a YAML mapping with the origin of every key.

    Attributes:
        name: the file as the user named it.
        data: the parsed mapping.
        origins: key path -> "file:line", or the `--set` that wrote it.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path_, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> SourceMap:
        """Parses a file.

        Raises:
            YamlError: unreadable, not YAML, not a mapping, a merge key, or a key twice.
        """
        shown = str(path)
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise YamlError(f"{shown}:{line}: not valid YAML: {error.problem}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise YamlError(f"{shown}: not a YAML text file: {' '.join(str(error).split())}") from None
        except RecursionError:
            raise YamlError(f"{shown}: not a recipe: its brackets are nested too deep") from None
        if not isinstance(root, yaml.MappingNode):
            raise YamlError(f"{shown}:1: a recipe is a mapping of sections such as `task:` and `corpus:`")
        source = cls(shown)
        source.data = source._walk(root, ())
        return source

    def _walk(self, node: yaml.Node, path: Path_) -> Any:
        here = f"{self.name}:{node.start_mark.line + 1}"
        if len(path) > DEEPEST:  # such as an alias within what it refers to
            raise YamlError(f"{here}: nested too deep; is an alias (*name) inside its own anchor (&name)?")
        self.origins.setdefault(path, here)
        if len(self.origins) > MOST_NODES:
            raise YamlError(f"{here}: more than {MOST_NODES:,} keys and values; write fewer aliases (*name)")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._walk(child, (*path, i)) for i, child in enumerate(node.value)]
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError):  # an unknown tag; a date in the 13th month
            raise YamlError(f"{here}: `{node.value}` is not a value of the type it looks like; quote it") from None

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                line = key_node.start_mark.line + 1
                raise YamlError(f"{self.name}:{line}: a key is a word, not a list or a mapping; quote what has {{ or [")
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key_node.tag == MERGE:
                raise YamlError(
                    f"{self.name}:{line}: merge keys (`<<`) are not supported; write the keys out, or repeat a "
                    "whole section with an alias (*name)"
                )
            if key in values:
                first = self.origins[(*path, key)]
                raise YamlError(f"{self.name}:{line}: `{key}` is given a second time (first at {first}); keep one")
            self.origins[(*path, key)] = f"{self.name}:{line}"
            values[key] = self._walk(child, (*path, key))
        return values

    def override(self, assignment: str) -> None:
        """Applies one `--set a.b=value`; the value is read as YAML.

        Raises:
            YamlError: not of that form, or a.b goes through something that is not a mapping.
        """
        dotted, equals, text = assignment.partition("=")
        keys = tuple(dotted.strip().split("."))
        if not equals or not all(keys):
            raise YamlError(f"--set {assignment}: write it as section.key=value, e.g. --set train.batch_size=128")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise YamlError(f"--set {assignment}: the value is not valid YAML; quote it") from None
        place: Any = self.data
        for i, key in enumerate(keys[:-1]):
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise YamlError(f"--set {assignment}: {'.'.join(keys[: i + 1])} is a value, not a section")
        place[keys[-1]] = value
        self.origins[keys] = f"--set {assignment}"

    def over(self, base: SourceMap) -> SourceMap:
        """These keys over those of `base`, section by section and key by key; lists are replaced whole."""
        replaced: list[Path_] = []
        data = _merged(base.data, self.data, (), replaced)
        origins = {path: at for path, at in base.origins.items() if not any(path[: len(r)] == r for r in replaced)}
        return SourceMap(self.name, data, origins | self.origins)

    def where(self, path: Sequence[str | int]) -> str:
        """Origin of the longest part of `path` that exists, from its start."""
        for end in range(len(path), -1, -1):
            if tuple(path[:end]) in self.origins:
                return self.origins[tuple(path[:end])]
        return self.name


def _merged(below: Any, above: Any, path: Path_, replaced: list[Path_]) -> Any:
    """`above` over `below`; paths at which nothing of `below` is kept are added to `replaced`."""
    mappings = isinstance(below, dict) and isinstance(above, dict)
    if not mappings or (path in NAMED and above.get("name", below.get("name")) != below.get("name")):
        replaced.append(path)
        return above
    keys = {key: _merged(below[key], value, (*path, key), replaced) for key, value in above.items() if key in below}
    return below | above | keys
