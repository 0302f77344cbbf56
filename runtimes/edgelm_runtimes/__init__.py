"""The device side: run a bundle, and check it, in the runtime that is installed."""

from __future__ import annotations

from edgelm_runtimes.registry import RuntimeState, available
from edgelm_runtimes.session import Classification, Session, Timing, load
from edgelm_runtimes.verify import RuntimeCheck, TokenizerCheck, VerifyReport, verify

__all__ = [
    "Classification",
    "RuntimeCheck",
    "RuntimeState",
    "Session",
    "Timing",
    "TokenizerCheck",
    "VerifyReport",
    "available",
    "load",
    "verify",
]
