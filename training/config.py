"""Configs: TOML files read into frozen dataclasses, with nothing left over and nothing of the wrong kind."""

import dataclasses
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(Exception):
    """What is wrong with a config, in one line that names the key."""


def read(path: Path, kind: type[T]) -> T:
    """A config file as a dataclass. Paths in it are relative to its own folder. Raises ConfigError."""
    return made(kind, table_of(path), str(path), path.parent)


def table_of(path: Path) -> dict[str, Any]:
    """What a config file holds. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: is missing; name a config file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML ({error})") from error


def made(kind: type[T], table: Mapping[str, Any], where: str, folder: Path) -> T:
    """A dataclass of a table's values; `where`: what messages call the table."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for key in table:
        if key not in fields:
            raise ConfigError(f"{where}: there is no key {key!r}; the keys are {', '.join(fields)}")
    for name, each in fields.items():
        needed = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if needed and name not in table:
            raise ConfigError(f"{where}: the key {name!r} is missing")
    values = {key: _value(hints[key], value, f"{where}: {key}", folder) for key, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:  # of the dataclass's own checks
        raise ConfigError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str, folder: Path) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # optional: TOML has no null, so a key that is there is not None
        (hint,) = [one for one in inner if one is not type(None)]
        return _value(hint, value, where, folder)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a table")
        return made(hint, value, where, folder)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list")
        return tuple(_value(inner[0], one, f"{where}[{i}]", folder) for i, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a table")
        return {key: _value(inner[1], one, f"{where}.{key}", folder) for key, one in value.items()}
    if hint is Path:
        if not isinstance(value, str):
            raise ConfigError(f"{where} must be a path")
        return (folder / Path(value).expanduser()).resolve()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be {_NAMES[hint]}, not {value!r}")
    return value


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def flat(config: Any) -> dict[str, Any]:
    """For the echo beside a run's weights."""
    return dataclasses.asdict(config)
