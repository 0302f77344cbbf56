"""Turn the raw result of generation.py into Markdown.

python benchmarks/generation_table.py benchmarks/results/generation.json > benchmarks/results/generation.md
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

OURS = ("edgelm-litert", "edgelm-onnx")


def rate(row: dict[str, Any] | None, key: str) -> str:
    if row is None:
        return "not run"
    return "fails" if "failed" in row else f"{row[key]:,.0f}"


def ratios(ours: dict[str, Any], other: dict[str, Any], key: str) -> list[float]:
    """Return how much faster we are than the other, round by round."""
    if key == "decode":
        mine, theirs = ([len(r["token_s"]) / sum(r["token_s"]) for r in row["short"]] for row in (ours, other))
    else:
        mine, theirs = ([1 / r["prefill_s"] for r in row["long"]] for row in (ours, other))
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def best(rows: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    running = [row for row in rows if "failed" not in row]
    return max(running, key=lambda row: float(row[key])) if running else None


def comparison(rows: list[dict[str, Any]], key: str, kind: str) -> str:
    """Return our best beside the best other: the median ratio, and its range over the rounds."""
    ours = best([row for row in rows if row["contestant"] in OURS], key)
    other = best([row for row in rows if row["contestant"] not in OURS], key)
    if ours is None or other is None:
        return "—"
    found = ratios(ours, other, kind)
    return f"{statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f}), {other['contestant']}"


def table(result: dict[str, Any], key: str, kind: str) -> list[str]:
    names = list(dict.fromkeys(row["contestant"] for row in result["rows"]))
    lines = [
        f"| shape | bits | threads | {' | '.join(names)} | best edgelm / best other |",
        "|" + "---|" * (len(names) + 4),
    ]
    keys = dict.fromkeys((row["shape"], row["bits"], row["threads"]) for row in result["rows"])
    for shape, bits, threads in keys:
        rows = [row for row in result["rows"] if (row["shape"], row["bits"], row["threads"]) == (shape, bits, threads)]
        by_name = {row["contestant"]: row for row in rows}
        top = best(rows, key)
        cells = [
            f"**{rate(by_name.get(name), key)}**" if top is by_name.get(name) else rate(by_name.get(name), key)
            for name in names
        ]
        lines.append(f"| {shape} | {bits} | {threads} | {' | '.join(cells)} | {comparison(rows, key, kind)} |")
    return lines


def memory(result: dict[str, Any]) -> list[str]:
    names = list(dict.fromkeys(row["contestant"] for row in result["rows"]))
    lines = [f"| shape | bits | threads | {' | '.join(names)} |", "|" + "---|" * (len(names) + 3)]
    for row in [row for row in result["rows"] if row["contestant"] == names[0]]:
        same = {
            other["contestant"]: other
            for other in result["rows"]
            if all(other[key] == row[key] for key in ("shape", "bits", "threads"))
        }
        cells = [
            "—" if name not in same or "failed" in same[name] else f"{same[name]['rss_bytes'] / 1e6:.0f}"
            for name in names
        ]
        lines.append(f"| {row['shape']} | {row['bits']} | {row['threads']} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    facts = result["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    isa = ", ".join(facts["machine"]["isa"])
    bandwidth = ", ".join(
        f"{int(value) / 1e9:.1f} with {threads}" for threads, value in facts["read_bytes_per_s"].items()
    )
    print("# Language models side by side\n")
    print(
        f"{facts['date']}, {facts['machine']['cpu_model']} ({isa}), {facts['machine']['logical_cores']} cores, {versions}.\n"
    )
    print(f"Memory is read at so many GB/s by so many processes: {bandwidth}.\n")
    print(
        "Random weights of the same shapes for all; `benchmarks/generation.py` says how. Bold: the fastest of a row. Q8_0 and"
    )
    print("Q4_0 in llama.cpp and OpenVINO. onnxruntime-genai and litert-lm run edgelm's own files.\n")
    for title, key, kind in (
        ("Decode, tokens a second (128 new tokens after 128)", "decode_tokens_per_s", "decode"),
        ("Prefill, tokens a second (512)", "prefill_512_tokens_per_s", "prefill"),
    ):
        print(f"## {title}\n")
        print("\n".join(table(result, key, kind)) + "\n")
    print("## Resident memory after all that, MB\n")
    print("\n".join(memory(result)) + "\n")
    failed = {(row["contestant"], row["failed"]) for row in result["rows"] if "failed" in row}
    for contestant, reason in sorted(failed):
        print(f"- {contestant} failed: {reason}")


if __name__ == "__main__":
    main()
