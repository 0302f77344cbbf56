from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from bundle_factory import make_classifier_bundle
from edgelm_runtimes import registry, verify
from tiny_models import Weights, write_tflite

from edgelm.bundle import BundleWriter, Manifest, open_bundle, write_golden
from edgelm.errors import BundleError, RuntimeUnavailableError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_classifier_bundle(tmp_path)


def remade(bundle: Path, change: object) -> Path:
    """Make the bundle again, with files changed by `change(folder, manifest) -> manifest`."""
    with open_bundle(bundle) as opened, BundleWriter(bundle.with_name("changed.edgelm"), force=False) as writer:
        for name in opened.manifest.files:
            (writer.folder / name).write_bytes(opened.path(name).read_bytes())
        manifest = change(writer.folder, opened.manifest)  # type: ignore[operator]
        writer.finish(manifest or opened.manifest)
    return bundle.with_name("changed.edgelm")


def test_a_good_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = registry.runtime_version
    monkeypatch.setattr(registry, "runtime_version", lambda name: None if name == "tflite" else original(name))
    report = verify(bundle)
    assert report.passed
    assert report.files == 4
    assert report.tokenizer is not None
    assert (report.tokenizer.cases, report.tokenizer.passed) == (3, True)
    assert [(check.runtime, check.status) for check in report.runtimes] == [
        ("litert", "passed"),
        ("tflite", "skipped"),
        ("onnx", "passed"),
    ]
    litert, tflite, onnx = report.runtimes
    assert litert.runs == 5  # texts of 6, 8 and 11 tokens, in the signatures of 8 and 16
    assert onnx.runs == 3
    assert tflite.reason == "pip install 'edgelm[tflite]'"
    for check in (litert, onnx):
        assert check.max_abs_error is not None
        assert check.bound is not None
        assert 0 <= check.max_abs_error <= check.bound
        assert check.agreement == 1


def test_one_runtime(bundle: Path) -> None:
    report = verify(bundle, runtime="onnx", threads=1)
    assert report.passed
    assert [check.runtime for check in report.runtimes] == ["onnx"]
    with pytest.raises(RuntimeUnavailableError, match="No runtime is called"):
        verify(bundle, runtime="onxx")


def test_rows_for_each_token(tmp_path: Path) -> None:
    assert verify(make_classifier_bundle(tmp_path, pool=False, role="embedding")).passed


def test_a_model_with_other_weights(bundle: Path) -> None:
    def change(folder: Path, manifest: Manifest) -> None:
        write_tflite(folder / "model.tflite", Weights.random(seed=5), (4, 8, 16))

    report = verify(remade(bundle, change))
    assert not report.passed
    litert = report.runtimes[0]
    assert litert.status == "failed"
    assert "it is off by" in (litert.reason or "")
    assert report.runtimes[-1].status == "passed"


def test_one_wrong_bucket_is_found(bundle: Path) -> None:
    """The 16-token signature gets another bias; the text that fits into 8 must show it too, as it fits into 16."""
    weights = Weights.random()

    def change(folder: Path, manifest: Manifest) -> None:
        write_tflite(folder / "model.tflite", dataclasses.replace(weights, bias=weights.bias + 1), (4, 8, 16))

    report = verify(remade(bundle, change), runtime="litert")
    assert report.runtimes[0].max_abs_error == pytest.approx(1, abs=1e-4)


def test_a_model_that_answers_nan(bundle: Path) -> None:
    weights = Weights.random()

    def change(folder: Path, manifest: Manifest) -> None:
        bias = np.full_like(weights.bias, np.nan)
        write_tflite(folder / "model.tflite", dataclasses.replace(weights, bias=bias), (4, 8, 16))

    report = verify(remade(bundle, change), runtime="litert")
    assert not report.passed
    assert report.runtimes[0].reason == "it answers with NaN or infinity"


def test_labels_that_change_within_the_bound_of_the_numbers(bundle: Path) -> None:
    """A bound so wide that it lets the labels change: the agreement still has to hold."""
    weights = Weights.random()

    def change(folder: Path, manifest: Manifest) -> Manifest:
        write_tflite(folder / "model.tflite", dataclasses.replace(weights, kernel=-weights.kernel), (4, 8, 16))
        artifacts = tuple(
            dataclasses.replace(artifact, parity=dataclasses.replace(artifact.parity, bound=1e6))
            for artifact in manifest.artifacts
        )
        return dataclasses.replace(manifest, artifacts=artifacts)

    report = verify(remade(bundle, change), runtime="litert")
    assert not report.passed
    assert "Keras's label to 0% of 5 runs" in (report.runtimes[0].reason or "")


def test_a_tokenizer_that_differs(bundle: Path) -> None:
    def change(folder: Path, manifest: Manifest) -> None:
        text = (folder / "tokenizer.json").read_text()
        assert '"card": 7' in text
        (folder / "tokenizer.json").write_text(
            text.replace('"card": 7', '"card": 99').replace('"cash": 10', '"cash": 7')
        )

    report = verify(remade(bundle, change), runtime="litert")
    assert not report.passed
    assert report.tokenizer is not None
    assert report.tokenizer.reason is not None
    assert report.tokenizer.reason.startswith("text 1")


def test_a_bundle_without_texts(tmp_path: Path) -> None:
    report = verify(make_classifier_bundle(tmp_path, tokenizer=False))
    assert report.passed
    assert report.tokenizer is None


def test_no_golden_vectors(bundle: Path) -> None:
    def change(folder: Path, manifest: Manifest) -> None:
        write_golden(folder, [])

    with pytest.raises(BundleError, match="no golden vectors"):
        verify(remade(bundle, change))


def test_the_committed_bundle_runs_for_ever() -> None:
    report = verify(Path(__file__).parents[1] / "data" / "version-1.edgelm")
    assert report.passed
    assert report.tokenizer is not None
    assert report.tokenizer.passed
