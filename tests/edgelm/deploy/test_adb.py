"""Deploying to a phone, against a script that answers as adb does; its words were copied from platform-tools 35."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.deploy import benchmark_on, deploy
from edgelm.errors import DeviceError

_ADB = """#!/bin/sh
[ "$1" = -s ] && serial=$2 && shift 2
[ -z "$PHONE_SAYS" ] || { echo "$PHONE_SAYS" >&2; exit 1; }
[ "${serial:-R58M}" = R58M ] || { echo "adb: device '$serial' not found" >&2; exit 1; }
case $1 in
  shell) shift; cd /; exec env PATH=/usr/bin:/bin HOME=/ sh -c "$*" ;;
  push) [ -z "$PUSH_SAYS" ] || [ "${2##*/}" != model.onnx ] || { echo "$PUSH_SAYS" >&2; exit 1; }
        cp "$2" "$3" && echo "$2: 1 file pushed" ;;
esac
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a phone that is connected."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "adb").write_text(_ADB)
    (programs / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path / "phone"


def test_a_bundle_is_pushed_and_its_checksums_checked(phone: Path, bundle: Path) -> None:
    sent = []
    deployed = deploy(bundle, f"adb::{phone}", progress=lambda step, done, total: sent.append(done))
    assert {path.name for path in (phone / bundle.name).iterdir()} == {path.name for path in bundle.iterdir()}
    assert deployed.report is None
    assert "Android's shell runs no Python" in (deployed.unverified or "")
    assert sent == sorted(sent)
    assert not deploy(bundle, f"adb:R58M:{phone}").copied
    assert [path.name for path in phone.iterdir()] == [bundle.name]


def test_the_command_says_what_it_could_not_check_and_succeeds(phone: Path, bundle: Path) -> None:
    command = [sys.executable, "-m", "edgelm", "deploy", str(bundle), f"adb::{phone}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "every SHA-256 right" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("edgelm: adb: has the files")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("adb: no devices/emulators found", "No phone is connected"),
        ("adb: more than one device/emulator", "Several phones"),
        ("adb: device unauthorized.", "allowed this machine"),
        ("adb: device offline", "offline"),
    ],
)
def test_a_phone_that_does_not_answer(
    phone: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    monkeypatch.setenv("PHONE_SAYS", said)
    with pytest.raises(DeviceError, match=told):
        deploy(bundle, f"adb::{phone}")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("adb: error: failed to copy 'x' to 'y': remote No space left on device", "no space left"),
        ("adb: error: failed to copy 'x' to 'y': device disconnected", "was lost"),
    ],
)
def test_a_push_that_fails_leaves_nothing(
    phone: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    monkeypatch.setenv("PUSH_SAYS", said)
    with pytest.raises(DeviceError, match=told):
        deploy(bundle, f"adb::{phone}")
    assert list(phone.iterdir()) == []


def test_an_unknown_phone_a_missing_adb_and_a_benchmark(
    phone: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match="No phone with this serial number"):
        deploy(bundle, f"adb:OTHER:{phone}")
    with pytest.raises(DeviceError, match="Nothing was measured"):
        benchmark_on(bundle, f"adb::{phone}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="apt-get install adb"):
        deploy(bundle, "adb:")
