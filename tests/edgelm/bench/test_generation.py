"""The benchmark of language models, on a model that is a hash: what is timed, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bundle_factory import make_classifier_bundle, make_generating_bundle
from click.testing import CliRunner
from edgelm_runtimes.adapters.fake_causal import FakeCausalProgram
from numpy.typing import NDArray

from edgelm.bench import GenerationRun, benchmark_generation, log
from edgelm.bench.generation_worker import Generate, repeat_once
from edgelm.cli import cli
from edgelm.errors import InputError, RuntimeUnavailableError

CONTEXT = 64


class Ticking(FakeCausalProgram):
    """A model whose clock moves by a second a token that it computes."""

    now_ns = 0

    def forward(self, ids: NDArray[np.int32], start: int, **options: object) -> NDArray[np.float32]:
        self.now_ns += len(ids) * 10**9
        return super().forward(ids, start, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_generating_bundle(tmp_path_factory.mktemp("bundle"), context_length=CONTEXT)


def test_times_the_prompt_and_every_token_after_the_first() -> None:
    program = Ticking(50, CONTEXT)
    asked = Generate(depth=10, prefill_tokens=20, decode_tokens=5)
    prefill_s, token_s = repeat_once(program, asked, 0, clock=lambda: program.now_ns)
    assert prefill_s == 20
    assert token_s == (1, 1, 1, 1)
    assert len(program.ids) == 34  # the last token is said, not computed
    # Again, and deeper, behind what is in the cache already: what is missing is computed untimed, from where it is missing.
    deeper = Generate(depth=12, prefill_tokens=3, decode_tokens=2)
    before = program.now_ns
    assert repeat_once(program, deeper, 10, clock=lambda: program.now_ns) == (3, (1,))
    assert program.now_ns - before == (2 + 3 + 1) * 10**9


def test_a_run_of_each_depth_survives_its_file(bundle: Path, tmp_path: Path) -> None:
    runs = benchmark_generation(
        bundle,
        runtime="fake",
        prefill_tokens=8,
        decode_tokens=4,
        depths=(0, 16),
        repetitions=3,
        meter="none",
        profile="raspberry-pi-5",
    )
    assert [run.settings.depth for run in runs] == [0, 16]
    for run in runs:
        assert len(run.samples.prefill_s) == 3
        assert [len(tokens) for tokens in run.samples.decode_s] == [3, 3, 3]
        assert run.results.inter_token_p99_s is None  # of nine tokens
        assert run.results.prefill_tokens_per_s == pytest.approx(8 / run.results.ttft_s)
        assert run.energy.method == "not measured"
        assert run.profile is not None
        assert "not on Raspberry Pi 5" in run.profile.statement
    log.write(runs, tmp_path / "runs.json")
    read = [GenerationRun.from_json(json.dumps(item)) for item in json.loads((tmp_path / "runs.json").read_text())]
    assert read == runs
    assert log.read_all([tmp_path / "runs.json"]) == runs
    for run in runs:
        log.append(run, tmp_path / "runs.jsonl")
    assert log.read_all([tmp_path / "runs.jsonl"]) == runs
    with pytest.raises(InputError, match="only runs of language models"):
        log.read([tmp_path / "runs.json"])
    with pytest.raises(InputError, match="its format is another one"):
        GenerationRun.from_json("{}")
    newer = json.dumps({**runs[0].to_dict(), "schema_version": 3})
    with pytest.raises(InputError, match="schema version 3"):
        GenerationRun.from_json(newer)


def test_rows_have_the_names_of_llama_bench(bundle: Path) -> None:
    (run,) = benchmark_generation(bundle, runtime="fake", prefill_tokens=8, decode_tokens=4, repetitions=2)
    prompt, answer = run.llama_bench_rows()
    assert (prompt["n_prompt"], prompt["n_gen"], prompt["n_depth"]) == (8, 0, 0)
    assert (answer["n_prompt"], answer["n_gen"], answer["n_depth"]) == (0, 3, 8)
    for row in (prompt, answer):
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        assert row["avg_ns"] == pytest.approx(np.mean(row["samples_ns"]), abs=1)
        tokens = row["n_prompt"] or row["n_gen"]
        # Nanoseconds are rounded to whole ones.
        assert row["samples_ts"][0] == pytest.approx(tokens / (row["samples_ns"][0] / 1e9), rel=1e-3)
    assert [len(tokens) for tokens in answer["token_ns"]] == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_tokens": 60, "decode_tokens": 8}, "holds 64 positions, and 68 are needed"),
        ({"decode_tokens": 1}, "an answer 2"),
        ({"depths": ()}, "a depth 0"),
        ({"depths": (-1,)}, "a depth 0"),
    ],
)
def test_amounts_that_make_no_sense(options: dict[str, int], message: str, bundle: Path) -> None:
    with pytest.raises(InputError, match=message):
        benchmark_generation(bundle, runtime="fake", **{"prefill_tokens": 8, "decode_tokens": 4, **options})  # type: ignore[arg-type]


def test_what_is_no_language_model(tmp_path: Path, bundle: Path) -> None:
    classifier = make_classifier_bundle(tmp_path, fake_files=True)
    with pytest.raises(InputError, match="does not generate"):
        benchmark_generation(classifier, runtime="fake")
    with pytest.raises(RuntimeUnavailableError, match="cannot be run in 'tflite'"):
        benchmark_generation(bundle, runtime="tflite")


def invoke(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["benchmark", *map(str, arguments)])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_the_command_prints_rows_or_a_table(bundle: Path, tmp_path: Path) -> None:
    amounts = ("--runtime", "fake", "-p", "8", "-d", "4", "-r", "2", "--meter", "none")
    status, output = invoke(bundle, *amounts, "--depth", "0", "--depth", "8", "-o", tmp_path / "runs.json")
    assert status == 0, output
    assert "TTFT ms" in output
    assert "energy: not measured (no meter was asked for)" in output
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 2
    status, output = invoke(bundle, *amounts, "--json")
    assert [item["format"] for item in json.loads(output)] == ["edgelm-generation-run"]


def test_the_command_keeps_the_two_kinds_apart(bundle: Path, tmp_path: Path) -> None:
    classifier = make_classifier_bundle(tmp_path, fake_files=True)
    assert "are for language models" in invoke(classifier, "-p", "8")[1]
    assert "measured with -p, -d" in invoke(bundle, "--queries", "5")[1]
    assert "in two commands" in invoke(bundle, classifier)[1]
