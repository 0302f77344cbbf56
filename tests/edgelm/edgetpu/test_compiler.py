"""The compiler's words, and running it: against a script that prints and writes what it does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgelm.edgetpu import OperatorLine, parse_compiler_log, run_compiler
from edgelm.errors import ConversionError, InputError, OutputError, RuntimeUnavailableError

# Printed by version 15 for a small classifier (published in github.com/system-software-lab/nrf20).
LOG = """\
Edge TPU Compiler version 15.0.340273435
Input: mnist4.tflite
Output: mnist4_edgetpu.tflite

Operator                       Count      Status

RESHAPE                        1          Mapped to Edge TPU
CONV_2D                        2          Mapped to Edge TPU
SOFTMAX                        1          Mapped to Edge TPU
QUANTIZE                       1          Operation is otherwise supported, but not mapped due to some unspecified limitation
DEQUANTIZE                     1          Operation is working on an unsupported data type
MAX_POOL_2D                    2          Mapped to Edge TPU
FULLY_CONNECTED                2          Mapped to Edge TPU
"""
# The layout of the summary, from https://coral.ai/docs/edgetpu/compiler/.
SUMMARY = """\
Edge TPU Compiler version 16.0.384591198
Model compiled successfully in 11 ms!
On-chip memory used for caching model parameters: 3.33MiB
On-chip memory remaining for caching model parameters: 4.39MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 35
"""


def test_the_table() -> None:
    record = parse_compiler_log(LOG)
    assert record.version == "15.0.340273435"
    assert len(record.operators) == 7
    assert record.operators[1] == OperatorLine("CONV_2D", 2, "Mapped to Edge TPU")
    assert (record.mapped_operators, record.cpu_operators) == (8, 2)
    assert record.cached_bytes is None


def test_the_summary() -> None:
    record = parse_compiler_log(SUMMARY)
    assert record.cached_bytes == round(3.33 * 2**20)
    assert (record.streamed_bytes, record.subgraphs) == (0, 1)


def test_another_text_is_refused() -> None:
    with pytest.raises(InputError, match="no log of edgetpu_compiler"):
        parse_compiler_log("Segmentation fault")


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs with a compiler that copies its input."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "edgetpu_compiler"
    log = f"{SUMMARY}\n{LOG.partition('Output')[2]}"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --show_operations ] && [ "$2" = --out_dir ] || exit 9\n'
        'case $4 in *bad*) echo "Invalid model: $4"; echo "Model not quantized"; exit 1 ;; *silent*) echo "Edge TPU '
        'Compiler version 16"; echo "it gave up"; exit 0 ;; esac\n'
        f'name=$(basename "$4" .tflite)\ncp "$4" "$3/${{name}}_edgetpu.tflite"\ncat <<\'END\'\n{log}\nEND\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def test_a_file_is_compiled_beside_itself_and_never_over_another_unasked(compiler: Path, tmp_path: Path) -> None:
    source = tmp_path / "a b.tflite"
    source.write_bytes(b"model")
    record = run_compiler(source)
    assert record.output == tmp_path / "a b_edgetpu.tflite"
    assert record.output.read_bytes() == b"model"
    assert (record.mapped_operators, record.cpu_operators, record.subgraphs) == (8, 2, 1)
    with pytest.raises(OutputError, match="exists already"):
        run_compiler(source)
    run_compiler(source, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b.tflite", "a b_edgetpu.tflite", "programs"]


@pytest.mark.parametrize(("name", "told"), [("bad", "Model not quantized"), ("silent", "it gave up")])
def test_a_refusal_is_told_in_the_compilers_words(compiler: Path, tmp_path: Path, name: str, told: str) -> None:
    source = tmp_path / f"{name}.tflite"
    source.write_bytes(b"model")
    with pytest.raises(ConversionError, match=told):
        run_compiler(source)
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "programs"}


def test_a_missing_compiler_and_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailableError, match="x86-64 Linux only"):
        run_compiler(tmp_path / "m.tflite")
    with pytest.raises(OutputError, match="cannot be written"):
        run_compiler(tmp_path / "m.tflite", folder=tmp_path / "missing")
