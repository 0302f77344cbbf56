"""Does the benchmark's comparison say what it promises?

    python benchmarks/comparison.py

A bundle of the runtime ``fake`` is measured against itself many times, each time in processes of their own and beside a
background load that comes and goes, and counted how often "faster" or "slower" is said. Then one of the two gets a delay
that makes it 3 % slower, and it is counted how often that is found. A query works on a loop that is as long as a counter
says, not as a clock says: a neighbour makes it longer, as it would a model.

Writes ``benchmarks/results/comparison.json`` and ``comparison.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

from edgelm_runtimes.machine import machine_facts
from edgelm_runtimes.program import ProgramFacts

from edgelm.bench.assemble import blocks_of
from edgelm.bench.comparison import CONFIDENCE, MARGIN, PairedRatio, paired_ratio, verdict_of
from edgelm.bench.evidence import find_evidence
from edgelm.bench.facts import installed_versions
from edgelm.bench.protocol import Measure
from edgelm.bench.worker import Answer, Query, measure, overhead

RESULTS = Path(__file__).parent / "results"

# Some 100 µs: shorter than a scheduler's slice, so that a neighbour delays a few queries of a turn and not all.
QUERY_LOOPS = 4000
TURN_QUERIES = 8
BLOCKS = 40
# A busy machine spreads the rounds by some 20 %, so that 3 % need hundreds of them.
BLOCKS_TO_FIND = 500
DIFFERENCE = 0.03


def work(loops: int) -> None:
    """Take a time that is proportional to a number."""
    for _ in range(loops):
        pass


def worker(pipe: multiprocessing.connection.Connection, loops: int) -> None:
    """Answer turns until the pipe ends."""
    gc.freeze()  # the collection before each turn need not go through all that was imported
    query = Query(partial(work, loops), lambda _: Answer())
    while (first := pipe.recv()) is not None:
        pipe.send(
            measure([query], Measure(first=first, seconds=10.0, queries=TURN_QUERIES, settle=True)).samples.latency_s
        )


def compare(loops: tuple[int, int], blocks: int, generator: random.Random) -> PairedRatio:
    """Measure two in turns as `edgelm.bench.loops.alternate` does, and return the second's ratio to the first."""
    lanes = []
    for count in loops:
        here, there = multiprocessing.Pipe()
        process = multiprocessing.Process(target=worker, args=(there, count), daemon=True)
        process.start()
        lanes.append((here, process))
    kept: list[list[tuple[int, float]]] = [[], []]
    order = [0, 1]
    for block in range(blocks):
        generator.shuffle(order)
        for lane in order:
            lanes[lane][0].send(0)
            kept[lane] += [(block, latency) for latency in lanes[lane][0].recv()]
    for here, process in lanes:
        here.send(None)
        process.join()
    first, second = (blocks_of(*zip(*samples, strict=True)) for samples in kept)
    return paired_ratio(second, first)


def neighbour(seed: int) -> None:
    """Work and rest for random times, with a mean of half of a core."""
    generator = random.Random(seed)
    while True:
        stop = time.perf_counter() + generator.expovariate(1 / 0.2)
        while time.perf_counter() < stop:
            work(10_000)
        time.sleep(generator.expovariate(1 / 0.2))


@contextmanager
def background(count: int) -> Iterator[None]:
    """Run neighbours meanwhile."""
    processes = [multiprocessing.Process(target=neighbour, args=(seed,), daemon=True) for seed in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def told(found: list[PairedRatio]) -> dict[str, object]:
    """Return what many comparisons said."""
    verdicts = [verdict_of(each) for each in found]
    ratios = [each.ratio for each in found if each.ratio is not None]
    widths = [each.high / each.low - 1 for each in found if each.low is not None and each.high is not None]
    outside = sum(not each.low <= 1 <= each.high for each in found if each.low is not None and each.high is not None)
    return {
        "tries": len(found),
        "blocks": max(each.blocks for each in found),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "interval_leaves_out_1": outside,
        "median_ratio": median(ratios),
        "least_ratio": min(ratios),
        "largest_ratio": max(ratios),
        "median_interval_width": median(widths),
        "ratios": [round(ratio, 5) for ratio in ratios],
    }


def main() -> None:
    """Measure and write."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--tries", type=int, default=200)
    arguments.add_argument("--finds", type=int, default=20)
    arguments.add_argument("--neighbours", type=int, default=1)
    arguments.add_argument("--seed", type=int, default=secrets.randbits(32))
    asked = arguments.parse_args()
    generator = random.Random(asked.seed)
    machine = machine_facts()
    loads = [os.getloadavg()[0]]
    slower = round(QUERY_LOOPS * (1 + DIFFERENCE))
    found: dict[str, list[PairedRatio]] = {"itself": [], "3 % slower": []}
    with background(asked.neighbours):
        for number in range(asked.tries):
            found["itself"].append(compare((QUERY_LOOPS, QUERY_LOOPS), BLOCKS, generator))
            # Among the others, so that both series see the same machine.
            if number * asked.finds % asked.tries < asked.finds:
                found["3 % slower"].append(compare((QUERY_LOOPS, slower), BLOCKS_TO_FIND, generator))
            loads.append(os.getloadavg()[0])
    facts = ProgramFacts("fake", "1", "cpu", 1, "none")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": machine.cpu_model,
            "cores": machine.logical_cores,
            "virtual_machine": machine.virtual_machine,
        },
        "python": platform.python_version(),
        "packages": installed_versions(),
        "evidence": find_evidence(machine, facts).level,
        "seed": asked.seed,
        "neighbours": asked.neighbours,
        "load_average_1min": {"least": min(loads), "median": median(loads), "most": max(loads)},
        "settings": {
            "blocks": BLOCKS,
            "blocks_to_find": BLOCKS_TO_FIND,
            "turn_queries": TURN_QUERIES,
            "confidence": CONFIDENCE,
            "margin": MARGIN,
            "loops": QUERY_LOOPS,
        },
        "overhead_s": overhead(),
        "comparisons": {name: told(ratios) for name, ratios in found.items()},
    }
    RESULTS.joinpath("comparison.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    RESULTS.joinpath("comparison.md").write_text(table(result))


def table(result: dict[str, object]) -> str:
    """Return the result as Markdown."""
    machine, settings, load = result["machine"], result["settings"], result["load_average_1min"]
    assert isinstance(machine, dict)
    assert isinstance(settings, dict)
    assert isinstance(load, dict)
    lines = [
        "# Does the comparison say what it promises?",
        "",
        f"Made by `benchmarks/comparison.py` on {machine['cpu']} ({machine['cores']} cores), {result['date']}.",
        f"The load average was {load['least']:.1f} to {load['most']:.1f} (median {load['median']:.1f}): other work ran, and",
        f"{result['neighbours']} neighbour that comes and goes. Rounds of {settings['turn_queries']} queries of two processes,",
        f"intervals at {settings['confidence']:.0%}, verdicts beyond a margin of {settings['margin']:.0%}.",
        "",
        "| compared with | rounds | tries | no difference | faster | slower | 1 left out | ratio, median (range) | width |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    comparisons = result["comparisons"]
    assert isinstance(comparisons, dict)
    for name, row in comparisons.items():
        verdicts = row["verdicts"]
        ratio = f"{row['median_ratio']:.4f} ({row['least_ratio']:.3f} to {row['largest_ratio']:.3f})"
        cells = [row["blocks"], row["tries"]]
        cells += [verdicts.get(verdict, 0) for verdict in ("no difference", "faster", "slower")]
        cells += [row["interval_leaves_out_1"], ratio, f"{row['median_interval_width']:.1%}"]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    overhead_s = result["overhead_s"]
    assert isinstance(overhead_s, float)
    lines += [
        "",
        f"The benchmark's own cost, from one query that does nothing to the next: {overhead_s * 1e6:.2f} µs.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
