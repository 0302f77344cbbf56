"""Results of other people's tools, which stand beside edgelm's own and name their source.

What a tool does not report stays unknown. Nothing is converted into a figure that it is not: a mean is never shown as a median.

>>> runs = read_foreign("phone.json", content)
"""

from __future__ import annotations

from pathlib import Path

from edgelm.report.foreign.ai_hub import parse_ai_hub
from edgelm.report.foreign.benchmark_model import is_benchmark_model, parse_benchmark_model
from edgelm.report.foreign.llama_bench import is_llama_bench, parse_llama_bench
from edgelm.report.foreign.run import ForeignRun

__all__ = ["ForeignRun", "parse_ai_hub", "parse_benchmark_model", "parse_llama_bench", "read_foreign"]


def read_foreign(path: Path, text: str) -> list[ForeignRun] | None:
    """Return the runs in a file of another tool; None where it is of none that is known.

    Args:
        path: Its ending tells YAML, and its name the device where the tool does not tell it.
        text: What is in it.

    Raises:
        InputError: It is of such a tool, and damaged.
        MissingPackageError: It is YAML, and PyYAML is not installed.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return parse_ai_hub(text, model=path.resolve().parent.name if path.name.startswith("perf") else path.stem)
    if is_llama_bench(text):
        return parse_llama_bench(text)
    if is_benchmark_model(text):
        return [parse_benchmark_model(text, device=path.stem)]
    return None
