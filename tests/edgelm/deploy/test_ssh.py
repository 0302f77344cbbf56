"""Deploying to a board, against a real OpenSSH server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_factory import make_classifier_bundle
from deploy_board import Board

from edgelm import bench
from edgelm.deploy import benchmark_on, deploy
from edgelm.errors import DeviceError, IntegrityError, OutputError


def _same_files(left: Path, right: Path) -> bool:
    return {path.name: path.read_bytes() for path in left.iterdir()} == {
        path.name: path.read_bytes() for path in right.iterdir()
    }


def _wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 20 s")


def test_a_bundle_is_copied_verified_there_and_not_copied_twice(board_with_edgelm: Board, bundle: Path) -> None:
    board = board_with_edgelm
    sent = []
    deployed = deploy(
        bundle,
        f"{board.host}/models/a",
        ssh_config=board.ssh_config,
        progress=lambda step, done, total: sent.append((done, total)),
    )
    there = board.home / "models" / "a" / bundle.name
    assert _same_files(bundle, there)
    assert deployed.copied
    assert deployed.report is not None
    assert deployed.report["passed"]
    assert deployed.unverified is None
    assert deployed.edgelm == str(board.home / "edgelm/bin/edgelm")
    assert sent[-1] == (deployed.size_bytes + (bundle / "manifest.json").stat().st_size,) * 2
    assert {path.name for path in there.parent.iterdir()} == {bundle.name}
    again = deploy(bundle, f"{board.host}/models/a", ssh_config=board.ssh_config, verify=False)
    assert not again.copied
    assert again.report is None
    assert again.path == str(there)


def test_a_zip_becomes_the_same_folder(board: Board, bundle: Path, tmp_path: Path) -> None:
    from edgelm.bundle import pack

    packed = pack(bundle, tmp_path / "packed.edgelm", force=False)
    deploy(packed, board.host, ssh_config=board.ssh_config, verify=False)
    assert (board.home / "packed.edgelm" / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()


def test_another_bundle_of_the_name_is_replaced_only_when_asked(board: Board, bundle: Path, tmp_path: Path) -> None:
    deploy(bundle, board.host, ssh_config=board.ssh_config, verify=False)
    other = make_classifier_bundle(tmp_path, formats=("tflite",))
    with pytest.raises(OutputError, match=r"tiny\.edgelm exists on 127\.0\.0\.1 with other content.*--force"):
        deploy(other, board.host, ssh_config=board.ssh_config, verify=False)
    assert _same_files(bundle, board.home / bundle.name)
    deploy(other, board.host, ssh_config=board.ssh_config, verify=False, force=True)
    assert _same_files(other, board.home / bundle.name)
    assert board.files() == {bundle.name}


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_no_bundle_is_never_replaced(board: Board, bundle: Path, kind: str) -> None:
    place = board.home / bundle.name
    if kind == "link":
        place.symlink_to("/etc")
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("years")
    with pytest.raises(OutputError, match="never replaced"):
        deploy(bundle, board.host, ssh_config=board.ssh_config, force=True)


def test_a_board_without_edgelm_gets_the_bundle_and_is_told_how_to_install_it(board: Board, bundle: Path) -> None:
    deployed = deploy(bundle, board.host, ssh_config=board.ssh_config)
    assert _same_files(bundle, board.home / bundle.name)
    assert deployed.report is None
    assert "pip install 'edgelm[litert]'" in (deployed.unverified or "")


def test_a_bundle_that_fails_its_check_there_does_not_replace_the_one_that_passed(
    board: Board, bundle: Path, tmp_path: Path
) -> None:
    deploy(bundle, board.host, ssh_config=board.ssh_config)
    check = {"runtime": "litert", "status": "failed", "reason": "wrong by 0.5"}
    report = json.dumps({"passed": False, "tokenizer": None, "runtimes": [check]})
    board.install("edgelm", f"[ $1 = verify ] && echo '{report}' && exit 1; echo 'edgelm, version 9'")
    other = make_classifier_bundle(tmp_path, formats=("tflite",))
    with pytest.raises(IntegrityError, match=r"litert failed: wrong by 0\.5.*not put into place"):
        deploy(other, board.host, ssh_config=board.ssh_config, force=True)
    assert _same_files(bundle, board.home / bundle.name)
    assert board.files() == {bundle.name}


@pytest.mark.parametrize("folder", ["-rf", "~/it's a \"q\\", "$(touch owned)`touch owned`;touch owned *"])
def test_a_folder_of_any_name_is_a_folder(board: Board, bundle: Path, folder: str) -> None:
    deploy(bundle, f"{board.host}/{folder}", ssh_config=board.ssh_config, verify=False)
    assert _same_files(bundle, board.home / folder.removeprefix("~/") / bundle.name)
    assert "owned" not in board.files()


def test_a_line_cut_in_mid_copy_leaves_nothing(board: Board, large_bundle: Path) -> None:
    # The session's server process is killed after 4 MB: 16 MB do not fit into the pipes and sockets between.
    killed = []

    def cut(step: str, done: int, total: int) -> None:
        if done >= 4 * 2**20 and not killed:
            killed.append(board.session_pid())
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(
        DeviceError, match=r"The connection to 127\.0\.0\.1 was lost .* bytes had been sent; nothing was put"
    ):
        deploy(large_bundle, board.host, ssh_config=board.ssh_config, progress=cut)
    _wait_for(lambda: board.files() == set())


def test_a_replaced_bundle_survives_a_line_cut_while_the_new_one_is_checked(
    board: Board, bundle: Path, tmp_path: Path
) -> None:
    deploy(bundle, board.host, ssh_config=board.ssh_config)
    board.install("edgelm", "[ $1 = verify ] && kill -9 $(cat ../session.pid) && sleep 1 && exit 1; echo 9")
    other = make_classifier_bundle(tmp_path, formats=("tflite",))
    with pytest.raises(DeviceError, match="was lost"):
        deploy(other, board.host, ssh_config=board.ssh_config, force=True)
    _wait_for(lambda: board.files() == {bundle.name})
    assert _same_files(bundle, board.home / bundle.name)


def test_an_interrupt_here_in_mid_copy_leaves_nothing_there(board: Board, large_bundle: Path) -> None:
    board.install("tar", 'touch ../receiving; sleep 1; exec /usr/bin/tar "$@"')
    receiving = board.home.parent / "receiving"
    command = [sys.executable, "-m", "edgelm", "deploy", str(large_bundle), board.host]
    process = subprocess.Popen([*command, "--ssh-config", str(board.ssh_config)], stderr=subprocess.PIPE, text=True)
    _wait_for(receiving.exists)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    _wait_for(lambda: board.files() == set())
    receiving.unlink()


def test_too_little_space_is_known_before_anything_is_sent(board: Board, bundle: Path) -> None:
    board.install(
        "df", "echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'; echo '/dev/sd card 99 95 4 96% /'"
    )
    with pytest.raises(DeviceError, match=r"takes [\d,]+ bytes, and 127\.0\.0\.1 has 4,096 left"):
        deploy(bundle, board.host, ssh_config=board.ssh_config)
    assert board.files() == set()


def test_space_that_runs_out_in_mid_copy_leaves_nothing(board: Board, bundle: Path) -> None:
    # What GNU tar prints on a full disk.
    board.install("tar", "echo 'tar: model.onnx: Cannot write: No space left on device' >&2; exit 2")
    with pytest.raises(DeviceError, match="ran out while"):
        deploy(bundle, board.host, ssh_config=board.ssh_config)
    assert board.files() == set()


def test_a_full_file_system_is_told_in_one_line(board: Board, bundle: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a file system of 12 kB is mounted by root only")
    small = board.home / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "none", small], check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(DeviceError, match="make space"):
            deploy(bundle, f"{board.host}/small", ssh_config=board.ssh_config)
        assert list(small.iterdir()) == []
        # The same where df tells nothing: now tar itself meets the end.
        board.install("df", "exit 1")
        with pytest.raises(DeviceError, match="ran out while"):
            deploy(bundle, f"{board.host}/small", ssh_config=board.ssh_config)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_file_that_changes_on_the_way_is_not_put_into_place(board: Board, bundle: Path) -> None:
    board.install("tar", '/usr/bin/tar "$@" && for file in .tiny.edgelm.*/model.onnx; do printf x >> "$file"; done')
    with pytest.raises(DeviceError, match=r"did not arrive whole on 127\.0\.0\.1 \(model\.onnx has the SHA-256"):
        deploy(bundle, board.host, ssh_config=board.ssh_config)
    assert board.files() == set()


def test_a_refused_key_an_unknown_board_and_a_wrong_name(board: Board, bundle: Path, tmp_path: Path) -> None:
    config = board.ssh_config.read_text()
    variants = {
        "refuses every key": config.replace("/user\n", "/stranger\n"),
        "is not known to this machine yet": re.sub(r"(?m)^UserKnownHostsFile .*$", "UserKnownHostsFile none", config),
    }
    for words, text in variants.items():
        (tmp_path / "config").write_text(text)
        with pytest.raises(DeviceError, match=words):
            deploy(bundle, board.host, ssh_config=tmp_path / "config")
    with pytest.raises(DeviceError, match=r"No machine is called no-such-board\.invalid"):
        deploy(bundle, "pi@no-such-board.invalid", ssh_config=board.ssh_config)
    with pytest.raises(DeviceError, match="no ssh server listens there"):
        deploy(bundle, "ssh://127.0.0.1:1", ssh_config=board.ssh_config)
    assert board.files() == set()


def test_ssh_that_is_not_installed(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="apt-get install openssh-client"):
        deploy(bundle, "pi@raspberrypi.local")


def test_a_benchmark_runs_there_and_comes_back(board_with_edgelm: Board, bundle: Path, tmp_path: Path) -> None:
    board, output = board_with_edgelm, tmp_path / "run.json"
    command = [sys.executable, "-m", "edgelm", "deploy", str(bundle), board.host, "--ssh-config", str(board.ssh_config)]
    command += ["--no-verify", "--benchmark", "-o", str(output), "--", "--runtime", "onnx", "--queries", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}\n"
    (run,) = bench.log.read([output])
    assert run.bundle.name == "tiny"
    assert run.results.queries == 5
    # LiteRT may have left its cache of packed weights there.
    assert board.files() - {".cache"} == {"edgelm", bundle.name}


def test_a_benchmark_that_fails_there_is_told_in_its_own_words(board_with_edgelm: Board, bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"edgelm benchmark failed on 127\.0\.0\.1: .*No runtime is called 'onxx'"):
        benchmark_on(
            bundle,
            board_with_edgelm.host,
            arguments=["--runtime", "onxx"],
            verify=False,
            ssh_config=board_with_edgelm.ssh_config,
        )


def test_a_benchmark_ends_with_the_line(board: Board, bundle: Path) -> None:
    board.install("edgelm", "[ $1 = benchmark ] || { echo 9; exit 0; }\ntrap 'echo > ../ended; exit 1' TERM\n"
                            "kill -9 $(cat ../session.pid)\nfor i in $(seq 200); do sleep 0.1; done")  # fmt: skip
    with pytest.raises(DeviceError, match="was lost"):
        benchmark_on(bundle, board.host, verify=False, ssh_config=board.ssh_config)
    _wait_for((board.home.parent / "ended").exists)
