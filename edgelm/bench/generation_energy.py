"""The energy of language models: a token of a prompt and a token of an answer, apart."""

from __future__ import annotations

from collections.abc import Sequence

from edgelm.bench.energy import record, window_s
from edgelm.bench.generation_lanes import GenerationAsked, ModelLane
from edgelm.bench.generation_worker import SpinModel
from edgelm.bench.loops import Progress
from edgelm.bench.meter_choice import MeterChoice
from edgelm.bench.protocol import Spun
from edgelm.errors import ExecutionError, MeterError
from edgelm.meters import measured, not_measured, per_token

__all__ = ["measure_model_energy"]


def measure_model_energy(
    lanes: Sequence[ModelLane], asked: GenerationAsked, choice: MeterChoice, asked_s: float | None, tell: Progress
) -> None:
    """Measure the energy of each lane that is alive at each depth, and keep it there; a meter that fails is in its record.

    Two windows each: prompts alone, and prompts with their answers. What the prompts cost is known from the first.

    Args:
        lanes: Warm.
        asked: The amounts.
        choice: The meter.
        asked_s: Of each window; None lets the sensor decide.
        tell: Told how far it is.
    """
    cases = [(lane, depth) for lane in lanes if lane.failure is None for depth in asked.depths if lane.done.get(depth)]
    if not cases:
        return
    failures: dict[int, str] = {}

    def load(lane: ModelLane, depth: int, decode_tokens: int | None, seconds: float) -> int:
        request = SpinModel(
            depth=depth, prefill_tokens=asked.prefill_tokens, decode_tokens=decode_tokens, seconds=seconds
        )
        try:
            return lane.target.ask(request, Spun).queries
        except ExecutionError as error:  # its times stand; only its energy is lost
            failures[id(lane)] = str(error)
            return 0

    work = [
        lambda seconds, lane=lane, depth=depth, tokens=tokens: load(lane, depth, tokens, seconds)
        for lane, depth in cases
        for tokens in (None, asked.decode_tokens)
    ]
    seconds = window_s(choice, asked_s)
    try:
        recorded = record(choice, work, seconds, lambda done, total: tell("energy", done, total))
    except MeterError as error:
        for lane, depth in cases:
            lane.energy[depth] = not_measured(str(error))
        return
    for index, (lane, depth) in enumerate(cases):
        prompts, answers = recorded.windows[2 * index : 2 * index + 2]
        if id(lane) in failures:
            lane.energy[depth] = not_measured(failures[id(lane)])
            continue
        tokens = per_token(
            prompts.energy,
            prompts.count * asked.prefill_tokens,
            answers.energy,
            answers.count * asked.prefill_tokens,
            answers.count * (asked.decode_tokens - 1),
        )
        lane.energy[depth] = measured(
            recorded.facts,
            [answers.energy],
            answers.count,
            tokens=tokens,
            events=(*recorded.events, *_notes(prompts.energy.reason)),
        )


def _notes(reason: str | None) -> tuple[str, ...]:
    """Return what must be said of the window of prompts, which is not among the record's windows."""
    return (
        () if reason is None else (f"the energy of a token is not to be relied on: while prompts were read, {reason}",)
    )
