"""Preset files as plain data: JSON, and as much of YAML as JSON could hold too."""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from .fields import shortened


MAX_FILE_BYTES = 4 * 2**20
# The YAML parser is written in Python, and some hundred times slower than that of JSON.
MAX_YAML_BYTES = 2**18
MAX_YAML_DEPTH = 16


def read_plain_data(path: str | Path) -> Any:
    """What a file that ends in .json, .yaml or .yml holds.

    Returns:
        `dict` with string keys, `list`, `str`, `int`, `float`, `bool` or `None`.

    Raises:
        `ValueError`: If there is no such file, it is too large, is not JSON or YAML, holds a key twice, NaN or an
            infinity, or in YAML anchors, aliases or tags.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise ValueError("it has to end in .json, .yaml or .yml.")
    # A device or a pipe would be read for ever.
    if not os.path.isfile(path):
        raise ValueError("there is no such file.")
    limit = MAX_FILE_BYTES if suffix == ".json" else MAX_YAML_BYTES
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}.") from error
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit} bytes.")
    try:
        text = content.decode("utf-8")
        if suffix != ".json":
            return yaml.load(text, _PlainLoader)
        return json.loads(text, object_pairs_hook=_mapping, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep.") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"it is not YAML as presets are: {shortened(error.problem)}{line}.") from error
    except yaml.YAMLError as error:
        raise ValueError("it is not YAML: it holds characters that YAML has no place for.") from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"it holds the key {shortened(key)} twice.")
        mapping[key] = value
    return mapping


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is not JSON.")


class _PlainLoader(yaml.SafeLoader):
    """Reads keys as strings, and a value that is no number, `true`, `false` or `null` as a string too."""

    # Without those of SafeLoader, for which `no` is false, 1:30 is 90 and dates are objects.
    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None or event.tag is not None:
            raise yaml.MarkedYAMLError(problem="anchor, alias or tag", problem_mark=event.start_mark)
        if self.depth == MAX_YAML_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key that is no word", problem_mark=key.start_mark)
        return _mapping([(key.value, self.construct_object(value, deep=True)) for key, value in node.value])


for _kind, _pattern, _first in (
    ("null", r"^(~|null|)$", ["~", "n", ""]),
    ("bool", r"^(true|false)$", ["t", "f"]),
    ("int", r"^[-+]?(0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"^[-+]?([0-9]+[eE][-+]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?)$", list("-+.0123456789")),
):
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), _first)
