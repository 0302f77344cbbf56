from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from pathlib import Path

import pytest
from bundle_factory import make_classifier_bundle
from edgelm_runtimes import registry
from edgelm_runtimes.adapters.shared import first_line
from edgelm_runtimes.program import ProgramOptions

from edgelm.bundle import Artifact, Manifest, RuntimeRecord, open_bundle
from edgelm.errors import MissingPackageError, RuntimeUnavailableError


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    with open_bundle(make_classifier_bundle(tmp_path, fake_files=True)) as bundle:
        return bundle.manifest


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(registry, "runtime_version", lambda name: "1.0" if name in names else None)
    monkeypatch.setattr(registry, "_numpy_conflict", lambda name: None)


def with_records(manifest: Manifest, **statuses: str) -> Manifest:
    def change(artifact: Artifact) -> Artifact:
        records = tuple(
            dataclasses.replace(record, status=statuses.get(record.runtime, record.status), reason="too old")
            for record in artifact.runtimes
        )
        return dataclasses.replace(artifact, runtimes=records)

    return dataclasses.replace(manifest, artifacts=tuple(change(artifact) for artifact in manifest.artifacts))


class TestDefaultRuntime:
    def test_the_first_that_is_installed(self, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, "onnx", "litert")
        assert registry.default_runtime(manifest) == "litert"
        installed(monkeypatch, "onnx")
        assert registry.default_runtime(manifest) == "onnx"

    def test_verified_before_untested(self, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, "onnx", "tflite")
        assert registry.default_runtime(manifest) == "onnx"
        installed(monkeypatch, "tflite")
        assert registry.default_runtime(manifest) == "tflite"

    def test_never_a_refused_one(self, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, "litert", "tflite")
        assert registry.default_runtime(with_records(manifest, litert="refused")) == "tflite"
        everything = with_records(manifest, litert="refused", tflite="refused", onnx="refused")
        with pytest.raises(RuntimeUnavailableError, match=r"litert is refused \(too old\)"):
            registry.default_runtime(everything)

    def test_none_installed(self, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch)
        with pytest.raises(
            RuntimeUnavailableError, match=r"Install one with: pip install 'edgelm\[litert\]' or pip install"
        ):
            registry.default_runtime(manifest)

    def test_a_runtime_of_a_later_edgelm(self, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch, "onnx")
        record = RuntimeRecord("photon", "verified", "9")
        artifacts = tuple(
            dataclasses.replace(artifact, runtimes=(record, *artifact.runtimes)) for artifact in manifest.artifacts
        )
        assert registry.default_runtime(dataclasses.replace(manifest, artifacts=artifacts)) == "onnx"


class TestChooseArtifact:
    def test_by_format(self, manifest: Manifest) -> None:
        assert registry.choose_artifact(manifest, "litert").format == "tflite"
        assert registry.choose_artifact(manifest, "onnx").format == "onnx"

    def test_a_refused_runtime(self, manifest: Manifest) -> None:
        with pytest.raises(
            RuntimeUnavailableError, match=r"model\.tflite refuses it: too old\. It runs in: litert, onnx"
        ):
            registry.choose_artifact(with_records(manifest, tflite="refused"), "tflite")

    def test_no_file_for_it(self, tmp_path: Path) -> None:
        with (
            open_bundle(make_classifier_bundle(tmp_path, formats=("onnx",), fake_files=True)) as bundle,
            pytest.raises(RuntimeUnavailableError, match=r"it has no tflite file\. It runs in: onnx"),
        ):
            registry.choose_artifact(bundle.manifest, "litert")


class TestAvailable:
    def test_names_every_runtime_but_the_fake(self) -> None:
        states = registry.available()
        assert [state.runtime for state in states] == ["litert", "onnx", "tflite"]
        for state in states:
            assert state.usable == (state.advice is None)

    def test_what_to_do_where_one_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(monkeypatch)
        assert registry.available()[0] == registry.RuntimeState("litert", False, None, "pip install 'edgelm[litert]'")

    def test_the_old_runtime_beside_numpy_2(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(registry, "runtime_version", lambda name: "2.14.0")
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.4.6")
        state = registry.available()[2]
        assert (state.runtime, state.usable, state.version) == ("tflite", False, "2.14.0")
        assert "pip install 'numpy<2'" in (state.advice or "")
        with pytest.raises(RuntimeUnavailableError, match="needs NumPy 1, and NumPy 2 is installed"):
            registry.open_program("tflite", tmp_path, (), ProgramOptions())


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch)
    with pytest.raises(MissingPackageError, match=r"runtime 'onnx' needs the package 'onnxruntime'"):
        registry.open_program("onnx", tmp_path, (), ProgramOptions())


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ImportError("libstdc++.so.6: version `GLIBCXX_3.4.30' not found")

    monkeypatch.setattr("edgelm_runtimes.adapters.onnx.open_program", broken)
    with pytest.raises(RuntimeUnavailableError, match=r"is installed and cannot be imported \(libstdc"):
        registry.open_program("onnx", tmp_path, (), ProgramOptions())


def test_default_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((1, 1), (2, 2), (4, 4), (16, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert registry.default_threads() == threads


def test_a_small_model_gets_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    with open_bundle(make_classifier_bundle(tmp_path)) as bundle:
        manifest = bundle.manifest
    assert registry.default_threads(manifest) == 1
    architecture = {"layers": 12, "width": 768, "feed_forward": 3072}
    large = dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, architecture=architecture))
    assert registry.default_threads(large) == 4


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "ERROR: [./litert/cc/model.h:196]\n└ ERROR: [litert/compiled_model.cc:36]",
            "ERROR: [./litert/cc/model.h:196]",
        ),
        ("ERROR: [./litert/cc/model.h:196]\n└ no such operator", "no such operator"),
        ("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load failed", "Load failed"),
        ("\n  Didn't find op for builtin opcode\nmore", "Didn't find op for builtin opcode"),
        ("", "RuntimeError"),
    ],
)
def test_one_line_of_a_runtimes_error(message: str, line: str) -> None:
    assert first_line(RuntimeError(message)) == line
