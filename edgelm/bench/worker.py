"""The process that is measured: it opens one bundle in one runtime, answers queries and reports their times.

``python -m edgelm.bench.worker`` reads one request a line from stdin, and writes one reply a line to stdout. It holds
nothing but that one bundle, so that its load time and its peak memory are the bundle's own.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dacite
import edgelm_runtimes
from edgelm_runtimes import Classification, Session, TranslationResult, feed
from edgelm_runtimes.machine import peak_memory_bytes

from edgelm.bench.protocol import Attend, Failed, Load, Loaded, Measure, Measured, Spin, Spun, WarmedUp, WarmUp
from edgelm.bench.run import Samples
from edgelm.bench.statistics import settled
from edgelm.bundle.golden import read_golden
from edgelm.errors import EdgelmError, InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Answer", "Query", "Worker", "attend", "main", "measure", "overhead", "serve", "spin", "warm_up"]

_LEAST_WINDOW = 10
# A batch is done in some milliseconds: one of five is likely to have a core for itself even on a busy machine.
_OVERHEAD_QUERIES = 2000
_OVERHEAD_BATCHES = 5
_AWAKE_NS = 1_000_000
_CONFIG = dacite.Config(strict=True, cast=[tuple])


@dataclass(frozen=True)
class Answer:
    """What a session tells of one query beside its result; None is not known.

    Attributes:
        tokenize_s: Text to ids.
        run_s: Inside the runtime.
        tokens: Tokens of the text.
        sequence_length: At which it ran, padding included.
        truncated: Whether the text was cut.
    """

    tokenize_s: float | None = None
    run_s: float | None = None
    tokens: int | None = None
    sequence_length: int | None = None
    truncated: bool = False


@dataclass(frozen=True)
class Query:
    """One input.

    Attributes:
        ask: Answers it; this is what is timed.
        tell: Says of what `ask` returned what is kept.
    """

    ask: Callable[[], Any]
    tell: Callable[[Any], Answer]


_NO_ANSWER = Answer()

Clock = Callable[[], int]


def measure(queries: Sequence[Query], request: Measure, *, clock: Clock = time.perf_counter_ns) -> Measured:
    """Time queries, one after the other, and return the latencies.

    The clock is read right before and right after the call. The garbage collector is off meanwhile: a collection would
    be charged to whichever query it hits. (Reference counts still free everything that has no cycle.)

    Args:
        queries: One an input.
        request: How many.
        clock: Nanoseconds.
    """
    count = len(queries)
    if request.settle:
        queries[request.first % count].ask()
    kept = _Kept(count)
    gc.collect()
    gc.disable()
    try:
        end = clock()
        stop = end + round(request.seconds * 1e9)
        index = request.first
        while not kept.latencies or (end < stop and len(kept.latencies) < request.queries):
            query = queries[index % count]
            ask = query.ask
            begin = clock()
            told = ask()
            end = clock()
            kept.add(index, begin, end, query.tell(told))
            index += 1
    finally:
        gc.enable()
    return kept.measured()


def attend(
    queries: Sequence[Query],
    request: Attend,
    *,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Measured:
    """Answer queries as they arrive, and return the latencies and the waiting before them.

    Of a pause all but the last millisecond is slept, which a scheduler may prolong by a tenth of one; that is waited for
    awake, so that an early riser and not the scheduler is measured.

    Args:
        queries: One an input.
        request: When they come. Those that cannot begin in time are left out.
        clock: Nanoseconds, counted as `Attend.origin_ns` is.
        sleep: Waits so many seconds.
    """
    kept = _Kept(len(queries))
    stop = request.origin_ns + round(request.stop_s * 1e9)
    gc.disable()
    try:
        for index, arrival_s in enumerate(request.arrivals_s, request.first):
            due = request.origin_ns + round(arrival_s * 1e9)
            if clock() > stop:
                break
            while (left := due - clock()) > 0:
                if left > _AWAKE_NS:
                    sleep((left - _AWAKE_NS) / 1e9)
            query = queries[index % len(queries)]
            begin = clock()
            told = query.ask()
            kept.add(index, begin, clock(), query.tell(told), waited=begin - due)
    finally:
        gc.enable()
    return kept.measured()


def spin(queries: Sequence[Query], request: Spin, *, clock: Clock = time.perf_counter_ns) -> Spun:
    """Answer queries for a time, at least one, and return how many."""
    stop = clock() + round(request.seconds * 1e9)
    done = 0
    while not done or clock() < stop:
        queries[(request.first + done) % len(queries)].ask()
        done += 1
    return Spun(queries=done)


class _Kept:
    """What is kept of the queries of a turn."""

    def __init__(self, inputs: int) -> None:
        self.latencies: list[int] = []
        self._begins: list[int] = []
        self._waited: list[int] = []
        self._answers: list[Answer] = []
        self._truncated: set[int] = set()
        self._inputs = inputs

    def add(self, index: int, begin: int, end: int, answer: Answer, waited: int | None = None) -> None:
        self.latencies.append(end - begin)
        self._begins.append(begin)
        self._answers.append(answer)
        if waited is not None:
            self._waited.append(waited)
        if answer.truncated:
            self._truncated.add(index % self._inputs)

    def measured(self) -> Measured:
        return Measured(
            samples=_samples(self.latencies, self._answers, self._begins, self._waited),
            truncated=tuple(sorted(self._truncated)),
            peak_memory_bytes=peak_memory_bytes(),
        )


def overhead(*, clock: Clock = time.perf_counter_ns) -> float:
    """Return what measuring itself takes for a query, in seconds: from one query that does nothing to the next.

    The least of several batches: what a neighbour on the core adds is not the benchmark's.
    """
    nothing = [Query(_nothing, _tell_nothing)]
    request = Measure(first=0, seconds=1.0, queries=_OVERHEAD_QUERIES, settle=True)
    return min(_mean_step(measure(nothing, request, clock=clock).samples) for _ in range(_OVERHEAD_BATCHES))


def _mean_step(samples: Samples) -> float:
    if samples.at_s is None:
        raise ValueError("every query has a time at which it began")
    return (samples.at_s[-1] - samples.at_s[0]) / max(1, len(samples.at_s) - 1)


def _nothing() -> None:
    """Take no time."""


def _tell_nothing(_: object) -> Answer:
    return _NO_ANSWER


def warm_up(queries: Sequence[Query], request: WarmUp, *, clock: Clock = time.perf_counter_ns) -> WarmedUp:
    """Answer queries until the p50 settles or a bound is reached, and return which."""
    # Whole cycles through the inputs, so that two windows hold the same ones; not with so many that it takes for ever.
    cycle = min(len(queries), _LEAST_WINDOW * 5)
    window = cycle * -(-_LEAST_WINDOW // cycle)
    latencies: list[float] = []
    stop = clock() + round(request.seconds * 1e9)
    while len(latencies) < request.queries:
        begin = clock()
        queries[len(latencies) % len(queries)].ask()
        end = clock()
        latencies.append((end - begin) / 1e9)
        if len(latencies) % window == 0 and settled(latencies, window):
            return WarmedUp(queries=len(latencies), settled=True)
        if end >= stop:
            break
    return WarmedUp(queries=len(latencies), settled=False)


class Worker:
    """One bundle, open in one runtime. A context manager: it closes the bundle."""

    def __init__(self) -> None:
        self._queries: list[Query] = []
        self._session: Session | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()

    def handle(self, data: Any) -> Loaded | WarmedUp | Measured | Spun:
        """Do what a request asks.

        Raises:
            EdgelmError: It failed in an expected way.
        """
        if data["op"] == "load":
            return self._load(dacite.from_dict(Load, data, _CONFIG))
        if data["op"] == "warm_up":
            return warm_up(self._queries, dacite.from_dict(WarmUp, data, _CONFIG))
        if data["op"] == "spin":
            return spin(self._queries, dacite.from_dict(Spin, data, _CONFIG))
        if data["op"] == "attend":
            return attend(self._queries, dacite.from_dict(Attend, data, _CONFIG))
        return measure(self._queries, dacite.from_dict(Measure, data, _CONFIG))

    def _load(self, request: Load) -> Loaded:
        baseline = peak_memory_bytes()
        begin = time.perf_counter()
        session = edgelm_runtimes.load(request.path, runtime=request.runtime, threads=request.threads)
        loaded = time.perf_counter()
        self._session = session
        self._queries = _queries(session, request)
        asked = time.perf_counter()
        self._queries[0].ask()
        answered = time.perf_counter()
        return Loaded(
            facts=session.facts,
            artifact_file=session.artifact.file,
            input_count=len(self._queries),
            load_s=loaded - begin,
            first_inference_s=answered - asked,
            baseline_memory_bytes=baseline,
            overhead_s=overhead(),
        )


def _queries(session: Session, request: Load) -> list[Query]:
    if request.texts is None:
        cases = read_golden(Path(request.golden))
        if not cases:
            raise InputError("The bundle has no golden inputs to measure with: give texts.")
        if session.manifest.task == "translate":
            return [_query_translation(session, case.inputs["source"]) for case in cases]
        return [_query_arrays(session, case.inputs) for case in cases]
    if session.manifest.task == "classify":
        return [Query(partial(session.classify, text), _of_classification) for text in request.texts]
    if session.manifest.task == "translate":
        return [Query(partial(session.translate, text), _of_translation) for text in request.texts]
    return [_query_embedding(session, text) for text in request.texts]


def _query_arrays(session: Session, inputs: dict[str, Any]) -> Query:
    port = feed.token_port(session.artifact.signatures[0])
    tokens = None if port is None else inputs[port.name].shape[1]
    return Query(partial(session.run, inputs), _always(session, tokens, truncated=False))


def _query_embedding(session: Session, text: str) -> Query:
    encoded = session.encode(text)
    return Query(partial(session.embed, text), _always(session, len(encoded.ids), truncated=encoded.truncated))


def _always(session: Session, tokens: int | None, *, truncated: bool) -> Callable[[Any], Answer]:
    """Return what there is to tell of a query where the answer itself tells nothing."""
    length = None if tokens is None else feed.smallest(session.artifact.signatures, tokens).sequence_length or tokens
    answer = Answer(tokens=tokens, sequence_length=length, truncated=truncated)
    return lambda _: answer


def _of_classification(told: Classification) -> Answer:
    return Answer(told.timing.tokenize_s, told.timing.run_s, told.tokens, told.sequence_length, told.truncated)


def _query_translation(session: Session, source: Any) -> Query:
    """Return the translation of a golden source, whose ids stand between those that the bundle puts around them."""
    record = session.manifest.translation
    before, after = (0, 0) if record is None else (len(record.source_prefix), len(record.source_suffix))
    ids = [int(token) for token in source[0, before : source.shape[1] - after]]
    return Query(partial(session.translate, ids), _of_translation)


def _of_translation(told: TranslationResult) -> Answer:
    return Answer(tokenize_s=told.tokenize_s, tokens=told.source_tokens, truncated=told.cut_tokens > 0)


def _samples(latencies: list[int], answers: list[Answer], begins: list[int], waited: list[int]) -> Samples:
    return Samples(
        latency_s=tuple(latency / 1e9 for latency in latencies),
        tokenize_s=_seconds([answer.tokenize_s for answer in answers]),
        run_s=_seconds([answer.run_s for answer in answers]),
        tokens=_counts([answer.tokens for answer in answers]),
        sequence_length=_counts([answer.sequence_length for answer in answers]),
        at_s=tuple(round(begin / 1e9, 6) for begin in begins),
        queue_s=tuple(wait / 1e9 for wait in waited) if waited else None,
    )


def _seconds(values: list[float | None]) -> tuple[float, ...] | None:
    # The clock counts nanoseconds; further digits are the noise of a subtraction, and a megabyte of them.
    known = tuple(round(value, 9) for value in values if value is not None)
    return known if len(known) == len(values) else None


def _counts(values: list[int | None]) -> tuple[int, ...] | None:
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def main() -> None:
    """Serve requests until stdin ends."""
    with Worker() as worker:
        serve(worker.handle)


def serve(handle: Callable[[Any], DataclassInstance]) -> None:
    """Answer the requests on stdin, a line of JSON each, until it ends."""
    # Ctrl-C goes to every process of the terminal; the benchmark decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The benchmark went away, or was interrupted and wants no more replies.
    with contextlib.suppress(BrokenPipeError):
        _serve(handle)


def _serve(handle: Callable[[Any], DataclassInstance]) -> None:
    # What a runtime prints must not come between the replies: stdout becomes stderr for everyone but us.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        for line in sys.stdin:
            try:
                reply = handle(json.loads(line))
            except EdgelmError as error:
                reply = Failed(error=type(error).__name__, message=str(error))
            replies.write(json.dumps(asdict(reply)) + "\n")
            replies.flush()


if __name__ == "__main__":
    main()
