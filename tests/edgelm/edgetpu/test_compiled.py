"""Looking into files that Coral's compiler made, and checking operators against what it really did."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edgelm.edgetpu import check_operators, inspect_compiled, is_compiled
from edgelm.errors import InputError

DATA = Path(__file__).parents[2] / "data" / "coral-edgetpu"
SPLIT = DATA / "split_concat_edgetpu.tflite"
# Larger ones, which are not shipped.
MORE = Path(__file__).parents[4] / "shared" / "data" / "coral-edgetpu"


def _more(name: str) -> Path:
    path = MORE / name
    if not path.is_file():
        pytest.skip(f"{name} of google-coral/test_data is not here")
    return path


def test_a_compiled_file_tells_its_chip_its_runtime_and_where_its_weights_are() -> None:
    found = inspect_compiled(SPLIT)
    assert found.chip == "beagle"
    assert found.min_runtime_version == 13
    assert found.compiler_version == "cl/343520747"
    assert [program.kind for program in found.executables] == ["execution only", "parameter caching"]
    # Coral's own documentation of the file is its name: no weights but a few constants, one partition, nothing left over.
    assert (found.cached_bytes, found.streamed_bytes) == (192, 0)
    assert found.edgetpu_operators == 1
    assert found.cpu_operators == {}
    assert set(found.executables[0].inputs) == {"input1", "inputs/rnn1", "inputs/rnn2"}
    assert found.executables[1].inputs == ()


@pytest.mark.parametrize(
    ("name", "runtime", "cached", "streamed"),
    # The bytes were read with the schema's generated code as well.
    [("mobilenet_v1_0.25_128_quant", 12, 566_912, 0), ("keras_lstm_mnist_ptq", 12, 43_968, 576)],
)
def test_real_models(name: str, runtime: int, cached: int, streamed: int) -> None:
    found = inspect_compiled(_more(f"{name}_edgetpu.tflite"))
    assert (found.min_runtime_version, found.cached_bytes, found.streamed_bytes) == (runtime, cached, streamed)
    assert found.cpu_operators == {}
    # What the chip keeps is the source's weights, padded to its tiles: never less of them.
    assert found.cached_bytes >= check_operators(_more(f"{name}.tflite")).weight_bytes


@pytest.mark.parametrize("name", ["split_concat", "mobilenet_v1_0.25_128_quant", "keras_lstm_mnist_ptq"])
def test_what_the_compiler_took_whole_is_foretold_to_be_mapped_whole(name: str) -> None:
    source = DATA / f"{name}.tflite" if name == "split_concat" else _more(f"{name}.tflite")
    check = check_operators(source)
    (graph,) = check.graphs
    assert graph.mapped == graph.operators > 0
    assert graph.first_unmapped is None
    assert check.spare_bytes > 0
    assert not is_compiled(source)


def test_a_file_that_was_not_compiled_is_refused() -> None:
    with pytest.raises(InputError, match="was not compiled for the Edge TPU"):
        inspect_compiled(DATA / "split_concat.tflite")


def test_what_is_no_tflite_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a" * 100)
    with pytest.raises(InputError, match="not a TFLite file"):
        is_compiled(tmp_path / "text")
    with pytest.raises(InputError, match="cannot be read"):
        is_compiled(tmp_path / "missing")


def test_a_damaged_file_is_refused_and_never_a_crash(tmp_path: Path) -> None:
    whole = SPLIT.read_bytes()
    draw = random.Random(0)
    damaged = tmp_path / "damaged.tflite"
    refused = 0
    for _ in range(200):
        content = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(1, 20)):
            # The graph lies in the file's first and last kilobytes; between them are instructions.
            place = draw.choice((draw.randrange(2000), len(content) - 1 - draw.randrange(2000)))
            if 8 <= place < len(content):
                content[place] = draw.randrange(256)
        damaged.write_bytes(content)
        try:
            inspect_compiled(damaged)
        except InputError:
            refused += 1
    assert refused > 100
