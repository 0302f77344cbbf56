"""The wheel, the device extras and the examples' bundles on emulated 64-bit Raspberry Pis."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import BOARDS, Emulated, native
from deploy_board import find_sshd, start_board
from edgelm_runtimes.litert_package import ACCELERATOR

from edgelm.deploy import benchmark_on, deploy

pytestmark = pytest.mark.devices
LANE = "pi64"

# Opens a model as edgelm does not: with the package as it is installed.
_UNPREPARED = """
import sys
from ai_edge_litert.compiled_model import CompiledModel
CompiledModel.from_file(sys.argv[1])
print("opened")
"""


@pytest.fixture(params=BOARDS, ids=[board.title for board in BOARDS])
def board(request: pytest.FixtureRequest) -> Emulated:
    return request.param


def test_a_classifier_is_verified_and_answers_as_on_the_workstation(
    board: Emulated, intents: Callable[[str], Path], questions: list[str], tmp_path: Path
) -> None:
    bundle = intents("int8")
    report = json.loads(board.edgelm("verify", bundle, "--json", cache=tmp_path))
    here = {check["runtime"]: check for check in json.loads(native("verify", bundle, "--json"))["runtimes"]}
    assert report["passed"]
    assert report["tokenizer"] is None or report["tokenizer"]["passed"]
    checks = {check["runtime"]: check for check in report["runtimes"]}
    for runtime in ("litert", "onnx"):
        assert checks[runtime]["status"] == "passed"
        # Both kernels multiply the same integers; what differs is the rounding of activations to int8, where a sum that
        # ends half way between two steps goes one way here and the other there. The error against Keras is made of
        # hundreds of such roundings, so a few of them change it by a small part.
        assert checks[runtime]["max_abs_error"] <= 1.5 * here[runtime]["max_abs_error"]
        options = ("--json", "--runtime", runtime)
        ours = [json.loads(native("run", bundle, question, *options)) for question in questions]
        theirs = [
            json.loads(board.edgelm("run", bundle, question, *options, cache=tmp_path)) for question in questions[:1]
        ]
        for mine, other in zip(ours, theirs, strict=False):
            assert other["ranking"][0][0] == mine["ranking"][0][0]
            assert other["tokens"] == mine["tokens"]


def test_a_language_model_writes_what_it_writes_on_the_workstation(
    board: Emulated, stories: Path, tmp_path: Path
) -> None:
    command = (
        "run",
        stories,
        "Once upon a time",
        "--temperature",
        "0",
        "--max-new-tokens",
        "24",
        "--runtime",
        "litert",
    )
    assert board.edgelm(*command, cache=tmp_path) == native(*command)


def test_a_benchmark_says_that_it_was_executed_and_not_measured(
    board: Emulated, intents: Callable[[str], Path], tmp_path: Path
) -> None:
    command = [board.install(tmp_path), "benchmark", intents("int8"), "--json", "--runtime", "onnx", "--queries", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)
    assert run["evidence"] == "executed"
    assert run["machine"]["architecture"] == "aarch64"
    assert run["machine"]["emulated_on"] == "x86_64"


def test_a_bundle_is_deployed_verified_and_benchmarked_over_ssh(
    board: Emulated, intents: Callable[[str], Path], tmp_path: Path
) -> None:
    if find_sshd() is None or shutil.which("ssh") is None:
        pytest.skip("no OpenSSH server here: sudo apt-get install openssh-server openssh-client")
    with start_board(tmp_path / "ssh") as server:
        board.install(server.programs)
        deployed = deploy(intents("int8"), server.host, ssh_config=server.ssh_config)
        assert deployed.report is not None
        assert deployed.report["passed"]
        runs = benchmark_on(
            intents("int8"), server.host, arguments=["--runtime", "onnx", "--queries", "3"], verify=False,
            ssh_config=server.ssh_config,
        )  # fmt: skip
    assert [run["evidence"] for run in runs] == ["executed"]
    assert runs[0]["machine"]["architecture"] == "aarch64"


def test_litert_as_installed_ends_the_process_where_edgelm_runs(
    board: Emulated, intents: Callable[[str], Path], tmp_path: Path
) -> None:
    """If this fails, LiteRT's GPU library was mended, and `litert_package` can go."""
    done = board.run("-c", _UNPREPARED, intents("int8") / "model.tflite", cache=tmp_path)
    if board.cpu == "cortex-a76":
        assert done.stdout == "opened\n", done.stderr
        return
    assert done.returncode != 0
    assert "lse enabled, but this feature is not available on this processor" in done.stderr
    assert ACCELERATOR in done.stderr
