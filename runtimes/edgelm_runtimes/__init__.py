"""The device side: run a bundle, talk to it, and check it, in the runtime that is installed."""

from __future__ import annotations

from edgelm_runtimes.classification import Classification, Timing
from edgelm_runtimes.conversation import Conversation
from edgelm_runtimes.generation import Generation, Translation
from edgelm_runtimes.generation_result import GenerationResult, SpeculationCounts
from edgelm_runtimes.generation_settings import GenerateOptions
from edgelm_runtimes.live_translation import LiveTranslation
from edgelm_runtimes.registry import RuntimeState, available
from edgelm_runtimes.session import Session, load
from edgelm_runtimes.translation_result import LiveResult, LiveText, TranslationResult
from edgelm_runtimes.translation_settings import TranslateOptions
from edgelm_runtimes.verify import RuntimeCheck, TokenizerCheck, VerifyReport, verify

__all__ = [
    "Classification",
    "Conversation",
    "GenerateOptions",
    "Generation",
    "GenerationResult",
    "LiveResult",
    "LiveText",
    "LiveTranslation",
    "RuntimeCheck",
    "RuntimeState",
    "Session",
    "SpeculationCounts",
    "Timing",
    "TokenizerCheck",
    "TranslateOptions",
    "Translation",
    "TranslationResult",
    "VerifyReport",
    "available",
    "load",
    "verify",
]
