"""Boards and bundles to deploy."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_factory import make_classifier_bundle
from deploy_board import Board, find_sshd, start_board


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    if find_sshd() is None or shutil.which("ssh") is None:
        pytest.skip("no OpenSSH server here: sudo apt-get install openssh-server openssh-client")
    if os.geteuid() == 0:
        # A server of root insists on it; Debian's init script makes it.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with start_board(tmp_path_factory.mktemp("ssh")) as board:
        yield board


@pytest.fixture
def board(_server: Board) -> Board:
    """An empty board, without edgelm."""
    for folder in (_server.home, _server.programs):
        shutil.rmtree(folder)
        folder.mkdir()
    return _server


@pytest.fixture
def board_with_edgelm(board: Board) -> Board:
    """A board on which this edgelm is installed, in a virtual environment where it is looked for."""
    program = board.home / "edgelm" / "bin" / "edgelm"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nCUDA_VISIBLE_DEVICES=-1 exec "{sys.executable}" -m edgelm "$@"\n')
    program.chmod(0o755)
    return board


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of 20 kB."""
    return make_classifier_bundle(tmp_path_factory.mktemp("bundle"), formats=("onnx",))


@pytest.fixture(scope="module")
def large_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 16 MB, more than the buffers between here and there hold."""
    bundle = make_classifier_bundle(tmp_path_factory.mktemp("large"), fake_files=True)
    padding = bytes(16 * 2**20)
    (bundle / "weights.bin").write_bytes(padding)
    manifest = json.loads((bundle / "manifest.json").read_text())
    record = {"size_bytes": len(padding), "sha256": hashlib.sha256(padding).hexdigest()}
    manifest["files"]["weights.bin"] = record
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle
