"""YAML that remembers where each key stands, so that a complaint can name file and line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Path_ = tuple[str | int, ...]


class YamlError(ValueError):
    """The file is not the YAML that a recipe can be."""


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
        """Parse a file.

        Raises:
            YamlError: unreadable, not YAML, not a mapping, or a key twice.
        """
        shown = str(path)
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise YamlError(f"{shown}:{line}: not valid YAML: {error.problem}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise YamlError(f"{shown}: not a YAML text file: {error}") from None
        if not isinstance(root, yaml.MappingNode):
            raise YamlError(f"{shown}:1: a recipe is a mapping of sections such as `task:` and `corpus:`")
        source = cls(shown)
        source.data = source._walk(root, ())
        return source

    def _walk(self, node: yaml.Node, path: Path_) -> Any:
        self.origins.setdefault(path, f"{self.name}:{node.start_mark.line + 1}")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._walk(child, (*path, i)) for i, child in enumerate(node.value)]
        return yaml.SafeLoader("").construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in values:
                first = self.origins[(*path, key)]
                raise YamlError(f"{self.name}:{line}: `{key}` stands here a second time (first at {first}); keep one")
            self.origins[(*path, key)] = f"{self.name}:{line}"
            values[key] = self._walk(child, (*path, key))
        return values

    def override(self, assignment: str) -> None:
        """Apply one `--set a.b=value`; the value is read as YAML.

        Raises:
            YamlError: not of that form, or a.b goes through something that is not a mapping.
        """
        dotted, equals, text = assignment.partition("=")
        keys = tuple(dotted.strip().split("."))
        if not equals or not all(keys):
            raise YamlError(f"--set {assignment}: write it as section.key=value, e.g. --set train.batch_size=128")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise YamlError(f"--set {assignment}: the value is not valid YAML; quote it") from None
        place: Any = self.data
        for i, key in enumerate(keys[:-1]):
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise YamlError(f"--set {assignment}: {'.'.join(keys[: i + 1])} is a value, not a section")
        place[keys[-1]] = value
        self.origins[keys] = f"--set {assignment}"

    def where(self, path: Sequence[str | int]) -> str:
        """Origin of the deepest part of `path` that exists."""
        for end in range(len(path), -1, -1):
            if tuple(path[:end]) in self.origins:
                return self.origins[tuple(path[:end])]
        return self.name
