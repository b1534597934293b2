"""Files that people write by hand, YAML or JSON: their values, and in which line each stands."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import AcceleratorConfig
from .errors import ConfigError
from .extras import missing_package

__all__ = ["Settings", "config_of", "read_config", "read_settings"]

LARGEST = 1 << 20
"""Bytes of such a file: more is something else"""


@dataclass(frozen=True)
class Settings:
    """The values of a file."""

    path: Path
    values: dict[str, Any]
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """keys from the outside in -> line, from 1 on; of YAML"""

    def error(self, text: str, *keys: str) -> ConfigError:
        """An error about a value: with the line of the innermost key that has one."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return ConfigError(f"{self.path}:{self.lines[keys[:end]]}: {text}")
        return ConfigError(f"{self.path}: {text}")

    def check_keys(self, known: Mapping[str, Any] | set[str], *within: str) -> None:
        """Refuse keys that are not known (ConfigError)."""
        values = self.values
        for key in within:
            values = values[key]
        for name in values:
            if name not in known:
                raise self.error(f"unknown key {name!r}; known keys: {', '.join(sorted(known))}", *within, name)


def read_settings(path: str | Path, what: str) -> Settings:
    """Read a file of `what`: .yaml or .yml with PyYAML, all others as JSON.

    Raises
    ------
    ConfigError
        If it cannot be read, is no mapping, or has a key twice; with the line.
    ToolMissingError
        If it is YAML and PyYAML is not installed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a YAML or JSON file of {what}") from error
    if len(data) > LARGEST:
        raise ConfigError(f"{path}: too large for a file of {what}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8; give a YAML or JSON file of {what}") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml(path, text, what)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a JSON object of {what}")
    return Settings(path, values)


def _read_yaml(path: Path, text: str, what: str) -> Settings:
    try:
        import yaml
    except ImportError as error:
        raise missing_package("yaml") from error
    lines: dict[tuple[str, ...], int] = {}

    def note(node: yaml.Node, keys: tuple[str, ...]) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = (*keys, str(key.value))
            line = key.start_mark.line + 1
            if name in lines:
                raise ConfigError(f"{path}:{line}: {name[-1]!r} stands there twice, first in line {lines[name]}")
            lines[name] = line
            note(value, name)

    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):  # a few of them may stand for gigabytes
                raise ConfigError(f"{path}:{token.start_mark.line + 1}: aliases (*{token.value}) are not taken here")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            note(node, ())
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{path}:{mark.line + 1 if mark else 1}: not YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())[:160]})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: not a mapping of {what}")
    return Settings(path, values, lines)


def config_of(settings: Settings, *within: str) -> AcceleratorConfig:
    """The configuration that a file, or a mapping in it, describes; errors name the line.

    Raises
    ------
    ConfigError
    """
    values: Any = settings.values
    for key in within:
        values = values[key]
    if not isinstance(values, dict):
        raise settings.error("must be a mapping of configuration values", *within)
    settings.check_keys(set(AcceleratorConfig.__dataclass_fields__), *within)
    try:
        return AcceleratorConfig.from_dict(values)
    except ConfigError as error:
        named = re.match(r"config: (\w+)", str(error))
        raise settings.error(str(error), *within, *([named[1]] if named else [])) from error


def read_config(path: str | Path) -> AcceleratorConfig:
    """An accelerator configuration from a YAML or JSON file.

    Raises
    ------
    ConfigError, ToolMissingError
    """
    return config_of(read_settings(path, "configuration values"))
