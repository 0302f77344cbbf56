"""From energy in a window to energy for something: net of idle, per inference, per token."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgelm.errors import MeterError
from edgelm.meters.energy import Energy

__all__ = ["NetEnergy", "PerUnit", "TokenEnergy", "net", "per_token", "per_unit"]


@dataclass(frozen=True, kw_only=True)
class NetEnergy:
    """What a load drew beyond what the device draws at rest.

    Attributes:
        gross: All that was drawn.
        idle_w: The power at rest: the mean of before and after.
        idle_drift_w: After less before: a device that warms up, a service that woke.
        joules: Gross less idle power times the time. Below 0 where the load is lost in the drift of idle.
        uncertainty_j: A bound on its error. The power at rest is taken to lie between what it was before and after.
        standard_j: One standard deviation.
        reliable: Whether all three windows are.
        reason: Why they are not.
    """

    gross: Energy
    idle_w: float
    idle_drift_w: float
    joules: float
    uncertainty_j: float
    standard_j: float
    reliable: bool
    reason: str | None


@dataclass(frozen=True)
class PerUnit:
    """An energy for one of something: an inference, a token.

    Attributes:
        joules: For one.
        uncertainty_j: A bound on its error.
        standard_j: One standard deviation.
    """

    joules: float
    uncertainty_j: float
    standard_j: float


@dataclass(frozen=True)
class TokenEnergy:
    """The energy of a language model's tokens, net of idle.

    Attributes:
        prefill: For a token of the prompt.
        decode: For a token that is generated.
    """

    prefill: PerUnit
    decode: PerUnit


def net(gross: Energy, idle_before: Energy, idle_after: Energy) -> NetEnergy:
    """Return the energy of a load beyond idle.

    Args:
        gross: While the load ran.
        idle_before: Before it, with the device at rest.
        idle_after: After it, likewise.

    Raises:
        MeterError: The windows are not in this order.
    """
    if not idle_before.end_s <= gross.start_s < gross.end_s <= idle_after.start_s:
        raise MeterError("Idle is measured before the load and after it, and these windows are not in that order.")
    idle_w = (idle_before.power_w + idle_after.power_w) / 2
    drift_w = idle_after.power_w - idle_before.power_w
    bounds = [idle.uncertainty_j / idle.duration_s for idle in (idle_before, idle_after)]
    deviations = [idle.standard_j / idle.duration_s for idle in (idle_before, idle_after)]
    idle_bound_w = abs(drift_w) / 2 + sum(bounds) / 2
    # The drift is even between its ends: half of it over √3.
    idle_standard_w = math.hypot(abs(drift_w) / 2 / math.sqrt(3), deviations[0] / 2, deviations[1] / 2)
    parts = (("the load", gross), ("idle before", idle_before), ("idle after", idle_after))
    reasons = [f"{name}: {part.reason}" for name, part in parts if part.reason is not None]
    return NetEnergy(
        gross=gross,
        idle_w=idle_w,
        idle_drift_w=drift_w,
        joules=gross.joules - idle_w * gross.duration_s,
        uncertainty_j=gross.uncertainty_j + idle_bound_w * gross.duration_s,
        standard_j=math.hypot(gross.standard_j, idle_standard_w * gross.duration_s),
        reliable=not reasons,
        reason="; ".join(reasons) or None,
    )


def per_unit(energy: Energy | NetEnergy, count: int) -> PerUnit:
    """Return the energy for one of `count`.

    Raises:
        MeterError: The count is below 1.
    """
    if count < 1:
        raise MeterError(f"An energy for one of {count} makes no sense. Count what ran in the window.")
    return PerUnit(energy.joules / count, energy.uncertainty_j / count, energy.standard_j / count)


def per_token(
    prefill: NetEnergy, prompt_tokens: int, generation: NetEnergy, generation_prompt_tokens: int, generated_tokens: int
) -> TokenEnergy:
    """Return the energy for a token of the prompt, and for one that is generated.

    A prefill alone is too short for most sensors. So two windows are measured: one in which prompts are read again and
    again and nothing is generated, one in which answers are generated to the same prompts. What their prompts cost is known
    from the first, and is taken off the second.

    Args:
        prefill: Net, while prompts were read.
        prompt_tokens: Tokens of all prompts in it.
        generation: Net, while answers were generated.
        generation_prompt_tokens: Tokens of all prompts in it; 0 where they were read before the window.
        generated_tokens: Tokens that were generated in it.

    Raises:
        MeterError: A count makes no sense.
    """
    if generation_prompt_tokens < 0:
        raise MeterError(f"{generation_prompt_tokens} tokens of prompts make no sense. Count what ran in the window.")
    of_prompt, of_all = per_unit(prefill, prompt_tokens), per_unit(generation, generated_tokens)
    share = generation_prompt_tokens / generated_tokens
    decode = PerUnit(
        of_all.joules - share * of_prompt.joules,
        of_all.uncertainty_j + share * of_prompt.uncertainty_j,
        math.hypot(of_all.standard_j, share * of_prompt.standard_j),
    )
    return TokenEnergy(of_prompt, decode)
