"""Reads what an earlier edgelm wrote: from the values of an old record to those of today's.

What an old run does not say is None, or said to be unknown; nothing is made up for it.
"""

from __future__ import annotations

from typing import Any

from edgelm.errors import InputError

__all__ = ["upgrade_generation_run", "upgrade_run", "upgraded"]

_EVIDENCE = "as an earlier edgelm recorded it"
_STOPPED = "it was interrupted"
_NO_RECORD: dict[str, Any] = {
    "sensor": None,
    "rate_hz": None,
    "inferences": None,
    "gross_j": None,
    "net_j": None,
    "idle_w": None,
    "uncertainty_j": None,
    "standard_j": None,
    "prefill_j_per_token": None,
    "decode_j_per_token": None,
    "windows": [],
}
_NOT_KEPT: dict[str, Any] = {
    "evidence_reason": _EVIDENCE,
    "modelled_energy": None,
    "background": None,
    "timeline": [],
    "sustained": None,
    "comparisons": [],
}
# Version 1 knew one protocol: turns of a quarter of a second, for a time or a number of queries. Today that is "quick".
_SETTINGS_NOT_KEPT: dict[str, Any] = {"mode": "quick", "order_seed": None, "resumed": 0}


def upgrade_run(old: dict[str, Any]) -> dict[str, Any]:
    """Return a run of version 1 as one of version 2, without changing it.

    Raises:
        TypeError: A part of it is no object.
        ValueError: It lacks a part, or has one that version 1 did not have.
    """
    kept = _without(
        old, {"schema_version", "interrupted", "settings", "results", "energy"}, new={*_NOT_KEPT, "stopped"}
    )
    return {
        **kept,
        **_NOT_KEPT,
        "schema_version": 2,
        "session": old["id"],
        "stopped": _STOPPED if _boolean(old["interrupted"]) else None,
        "realtime": None,
        "mlperf": None,
        "settings": {**old["settings"], **_SETTINGS_NOT_KEPT},
        "results": {**old["results"], "overhead_s": None},
        "energy": _energy(old["energy"]),
    }


def upgrade_generation_run(old: dict[str, Any]) -> dict[str, Any]:
    """Return a language model's run of version 1 as one of version 2, without changing it.

    Raises:
        TypeError: A part of it is no object.
        ValueError: It lacks a part, or has one that version 1 did not have.
    """
    kept = _without(old, {"schema_version", "settings", "energy"}, new={*_NOT_KEPT, "before", "after", "stopped"})
    return {
        **kept,
        **_NOT_KEPT,
        "schema_version": 2,
        "session": old["id"],
        "stopped": None,
        "before": None,
        "after": None,
        "settings": {**old["settings"], **_SETTINGS_NOT_KEPT},
        "energy": _energy(old["energy"]),
    }


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return a run of any kind and version as one of today's; what is today's already is returned as it is.

    Raises:
        InputError: It is of version 1, and lacks a part of it.
    """
    if values.get("schema_version") != 1:
        return values
    try:
        return upgrade_run(values) if values.get("format") == "edgelm-run" else upgrade_generation_run(values)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"A run of version 1 does not follow its schema ({error}): the file is damaged.") from error


def _without(old: dict[str, Any], changed: set[str], *, new: set[str]) -> dict[str, Any]:
    missing = {*changed, "id"} - old.keys()
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    surprising = new & old.keys()
    if surprising:
        raise ValueError(f"version 1 had no {', '.join(sorted(surprising))}")
    return {key: value for key, value in old.items() if key not in changed}


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"wrong value {value!r} where true or false belongs")
    return value


def _energy(old: dict[str, Any]) -> dict[str, Any]:
    if old.keys() != {"energy_j", "method", "scope", "reason"}:
        raise ValueError(f"version 1 had no energy of {', '.join(sorted(old)) or 'nothing'}")
    return {
        **_NO_RECORD,
        "method": old["method"],
        "scope": old["scope"],
        "per_inference_j": old["energy_j"],
        "notes": [] if old["reason"] is None else [old["reason"]],
    }
