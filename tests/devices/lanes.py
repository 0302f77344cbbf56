"""Where the device lanes lie: ``$XDG_CACHE_HOME/edgelm-devices``, filled by ``setup.py`` beside this file."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["CACHE", "REPOSITORY", "reason_file", "why_not"]

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgelm-devices"


def reason_file(lane: str) -> Path:
    """Return the file that says why a lane could not be set up."""
    return CACHE / f"{lane}.reason"


def why_not(lane: str) -> str | None:
    """Return why a lane cannot run here, or None if it can."""
    if (CACHE / f"{lane}.ready").is_file():
        return None
    try:
        return reason_file(lane).read_text(encoding="utf-8").strip()
    except OSError:
        return "not set up: run make test-devices"
