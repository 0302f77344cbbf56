"""Turn the raw result of `compression.py` into Markdown.

    python benchmarks/compression_table.py benchmarks/results/compression.json > benchmarks/results/compression.md

A difference is to Keras's answers on the same texts, in points of accuracy, with Tango's 95 % interval; p is McNemar's. A
latency is the median over the rounds of each round's median.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["accuracy_table", "latency_table"]

Row = dict[str, Any]


def accuracy_table(rows: list[Row]) -> str:
    """Return one table of one model: a line a contestant, with what its answers are worth and its bytes."""
    lines = [
        "| contestant | runtime | MB | accuracy, % | difference to Keras, points | p | same label, % |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [accuracy_line(row) for row in rows])


def accuracy_line(row: Row) -> str:
    start = f"| {row['contestant']} | {row['engine']} |"
    size = f"{row['size_bytes'] / 1e6:.2f}" if "size_bytes" in row else "—"
    if "failed" in row:
        return f"{start} {size} | {reason(row)} | | | |"
    total = row["samples"]
    low, high = (100 * value for value in row["accuracy_interval"])
    below, above = (100 * value for value in row["difference_interval"])
    difference = 100 * (row["right"] - row["keras_right"]) / total
    return (
        f"{start} {size} | {100 * row['right'] / total:.2f} ({low:.2f}–{high:.2f}) | {difference:+.2f} "
        f"({below:+.2f} to {above:+.2f}) | {row['mcnemar_p']:.2g} | {100 * row['same_label'] / total:.1f} |"
    )


def reason(row: Row) -> str:
    """Return why a contestant has no figure, as one cell."""
    text = " ".join(str(row["failed"]).split()).replace("|", "\\|")
    return f"not there: {text[:157] + '…' if len(text) > 160 else text}"


def latency_table(rows: list[Row]) -> str:
    """Return one table of one model: a line a contestant, a column for each thread count, in milliseconds."""
    counts = sorted({row["threads"] for row in rows})
    lines = [
        "| contestant | runtime | " + " | ".join(f"{count} threads" for count in counts) + " |",
        "|" + "---|" * (len(counts) + 2),
    ]
    for name, engine in dict.fromkeys((row["contestant"], row["engine"]) for row in rows):
        found = {row["threads"]: row for row in rows if (row["contestant"], row["engine"]) == (name, engine)}
        lines.append(f"| {name} | {engine} | " + " | ".join(latency_cell(found.get(count)) for count in counts) + " |")
    return "\n".join(lines)


def latency_cell(row: Row | None) -> str:
    if row is None:
        return "not run"
    return reason(row) if "failed" in row else f"{row['p50_s'] * 1e3:.3g}"


def heading(facts: Row) -> str:
    machine = facts["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    return f"{facts['date']}, {machine['cpu_model']}, {machine['logical_cores']} cores, {versions}."


def page(result: Row) -> str:
    """Return the whole page."""
    parts = [
        "# Compression side by side",
        f"`benchmarks/compression.py` says how. {heading(result['facts']['accuracy'])}",
    ]
    for model in dict.fromkeys(row["model"] for row in result["accuracy"]):
        rows = [row for row in result["accuracy"] if row["model"] == model]
        measured = next((row for row in rows if "right" in row), None)
        if measured is None:
            parts += [f"## {model}: nothing runs", accuracy_table(rows)]
            continue
        share = 100 * measured["keras_right"] / measured["samples"]
        parts += [f"## {model}: {measured['samples']} texts, Keras {share:.2f} %", accuracy_table(rows)]
    if result["latency"]:
        parts += ["# Latency, ms (p50, batch 1, ids to logits)", heading(result["facts"]["latency"])]
    for model in dict.fromkeys(row["model"] for row in result["latency"]):
        parts += [f"## {model}", latency_table([row for row in result["latency"] if row["model"] == model])]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    print(page(json.loads(parser.parse_args().result.read_text())))


if __name__ == "__main__":
    main()
