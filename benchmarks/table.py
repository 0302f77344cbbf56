"""Turn the raw result of `encoders.py` into Markdown tables.

    python benchmarks/table.py benchmarks/results/encoders.json > benchmarks/results/encoders.md

A latency is the median over the rounds of each round's median. The ratio is the best other one over the best of edgelm's two
runtimes, at the same precision: above 1, edgelm is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

FP32 = ("keras-predict", "keras-export-litert", "keras-export-onnx", "openvino-fp32")
INT8 = ("keras-export-litert-int8", "onnxruntime-dynamic-int8", "openvino-int8")
OURS = {"fp32": ("edgelm-litert-fp32", "edgelm-onnx-fp32"), "int8": ("edgelm-litert-int8", "edgelm-onnx-int8")}


def latency_table(rows: list[dict[str, Any]], precision: str) -> str:
    """Return one table: a line for each model, length and thread count."""
    others = FP32 if precision == "fp32" else INT8
    names = (*OURS[precision], f"edgelm-file-{precision}", *others)
    lines = ["| model | tokens | threads | " + " | ".join(names) + " | best other / best edgelm |"]
    lines.append("|---|---|---|" + "---|" * (len(names) + 1))
    for key in dict.fromkeys((row["model"], row["tokens"], row["threads"]) for row in rows):
        found = {row["contestant"]: row for row in rows if (row["model"], row["tokens"], row["threads"]) == key}
        best = min(found[name].get("latency_s", float("inf")) for name in names)
        cells = [cell(found[name], best) for name in names]
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | " + " | ".join(cells) + f" | {ratio(found, precision, others)} |"
        )
    return "\n".join(lines)


def cell(row: dict[str, Any], best: float) -> str:
    if "latency_s" not in row:
        return "—"
    text = f"{row['latency_s'] * 1e3:.3g}"
    return f"**{text}**" if row["latency_s"] == best else text


def ratio(found: dict[str, dict[str, Any]], precision: str, others: tuple[str, ...]) -> str:
    """Return the paired ratio, round by round: median, and the range of the rounds."""

    def fastest(names: tuple[str, ...]) -> dict[str, Any]:
        return min((found[name] for name in names if "latency_s" in found[name]), key=lambda row: row["latency_s"])

    mine, other = fastest(OURS[precision]), fastest(others)
    pairs = sorted(b / a for a, b in zip(mine["round_medians_s"], other["round_medians_s"], strict=True))
    return f"{statistics.median(pairs):.2f} ({pairs[0]:.2f}–{pairs[-1]:.2f}), {other['contestant']}"


def error_table(rows: list[dict[str, Any]]) -> str:
    """Return the largest difference of a logit from Keras's, of each contestant."""
    lines = [
        "| model | contestant | largest error | largest logit | memory of the process, MB |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row["tokens"] == 128 and row["threads"] == 1 and "latency_s" in row:
            lines.append(
                f"| {row['model']} | {row['contestant']} | {row['max_error']:.2g} | {row['max_logit']:.2g} | "
                f"{row['rss_bytes'] / 1e6:.0f} |"
            )
    return "\n".join(lines)


def conversion_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| model | conversion | whole process, s | peak memory, MB | file, MB |", "|---|---|---|---|---|"]
    for row in rows:
        if "not_run" in row:
            lines.append(f"| {row['model']} | {row['conversion']} | not run: {row['not_run']} | | |")
        else:
            state = "" if row["ok"] else " (failed)"
            lines.append(
                f"| {row['model']} | {row['conversion']}{state} | {row['wall_s']:.1f} | {row['peak_bytes'] / 1e6:.0f} | "
                f"{row['output_bytes'] / 1e6:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    result = json.loads(parser.parse_args().result.read_text())
    facts = result["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    machine = facts["machine"]
    print(
        f"# Encoders side by side\n\n{facts['date']}, {machine['cpu_model']}, {machine['logical_cores']} cores, {versions}."
    )
    print(
        "\nBatch 1, ids in, logits out, milliseconds; `benchmarks/encoders.py` says how. Bold: the fastest of a row.\n"
    )
    for precision in ("fp32", "int8"):
        print(f"## {precision}\n\n{latency_table(result['latency'], precision)}\n")
    print(f"## Against Keras, at 128 tokens\n\n{error_table(result['latency'])}\n")
    print(f"## Conversion\n\nFrom a `.keras` file, as a whole process.\n\n{conversion_table(result['conversion'])}")


if __name__ == "__main__":
    main()
