"""Finds device profiles: the ones that edgelm ships, and a user's own files."""

from __future__ import annotations

import os
import tomllib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from edgelm.errors import ProfileError, unknown_name
from edgelm_device_profiles.profile import DeviceProfile, parse_profile

__all__ = ["load", "names"]

_SUFFIX = ".toml"


def names() -> tuple[str, ...]:
    """Return the names of the shipped profiles, sorted."""
    return tuple(sorted(_shipped()))


def load(name_or_path: str | Path) -> DeviceProfile:
    """Return a profile by its name, or from a user's own file.

    Args:
        name_or_path: A name in `names()`, or a path: a `Path`, or a text that ends in ``.toml`` or holds a separator.

    Raises:
        ProfileError: The name is not known (the message has the nearest), or the file is missing or not valid.
    """
    if isinstance(name_or_path, Path) or _is_path(name_or_path):
        path = Path(name_or_path)
        try:
            return _parse(path.read_bytes(), str(path))
        except FileNotFoundError as error:
            raise ProfileError(
                f"The device profile '{path}' does not exist. Give a path, or one of: {_list()}"
            ) from error
        except OSError as error:
            raise ProfileError(f"The device profile '{path}' cannot be read: {error.strerror}.") from error
    return _load_shipped(name_or_path)


@cache
def _load_shipped(name: str) -> DeviceProfile:
    shipped = _shipped()
    if name not in shipped:
        raise ProfileError(unknown_name("device profile", name, shipped))
    return _parse(shipped[name].read_bytes(), name + _SUFFIX)


@cache
def _shipped() -> dict[str, Traversable]:
    folder = files("edgelm_device_profiles").joinpath("data")
    return {item.name.removesuffix(_SUFFIX): item for item in folder.iterdir() if item.name.endswith(_SUFFIX)}


def _parse(content: bytes, origin: str) -> DeviceProfile:
    try:
        table = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{origin} is not a valid TOML file: {error}.") from error
    return parse_profile(table, origin)


def _is_path(text: str) -> bool:
    return text.endswith(_SUFFIX) or os.sep in text or (os.altsep is not None and os.altsep in text)


def _list() -> str:
    return ", ".join(names()) + "."
