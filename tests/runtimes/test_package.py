"""What the device side imports and offers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import edgelm_runtimes
import pytest
from bundle_factory import TEXTS, make_classifier_bundle

import edgelm.bundle

FRAMEWORKS = ("tensorflow", "keras", "keras_hub", "torch", "onnx", "tf2onnx", "edgelm_converters")
RUNTIME_PACKAGES = ("ai_edge_litert", "onnxruntime", "tflite_runtime", "tokenizers")


def modules_after(code: str, *arguments: object) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after some code."""
    code += "\nimport sys\nprint('MODULES', *sorted({name.partition('.')[0] for name in sys.modules}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("MODULES")[2].split())


def test_public_names() -> None:
    assert edgelm_runtimes.__all__ == [
        "Classification",
        "Conversation",
        "GenerateOptions",
        "Generation",
        "GenerationResult",
        "LiveResult",
        "LiveText",
        "LiveTranslation",
        "RuntimeCheck",
        "RuntimeState",
        "Session",
        "SpeculationCounts",
        "Timing",
        "TokenizerCheck",
        "TranslateOptions",
        "Translation",
        "TranslationResult",
        "VerifyReport",
        "available",
        "load",
        "verify",
    ]
    assert edgelm.bundle.__all__ == [
        "FORMAT",
        "SCHEMA_VERSION",
        "Accuracy",
        "Artifact",
        "AudioRecord",
        "Bundle",
        "BundleWriter",
        "CacheRecord",
        "CalibrationRecord",
        "CompressionStep",
        "FileRecord",
        "GateRecord",
        "GateStep",
        "GenerationRecord",
        "GoldenCase",
        "Manifest",
        "ModelRecord",
        "Parity",
        "Perplexity",
        "Port",
        "RuntimeRecord",
        "Signature",
        "TokenizerRecord",
        "TranslationRecord",
        "open_bundle",
        "pack",
        "write_golden",
    ]
    for module in (edgelm_runtimes, edgelm.bundle):
        assert all(hasattr(module, name) for name in module.__all__)


def test_importing_loads_no_framework_and_no_runtime() -> None:
    modules = modules_after("import edgelm_runtimes, edgelm_runtimes.registry as r; r.available()")
    assert modules.isdisjoint((*FRAMEWORKS, *RUNTIME_PACKAGES))


@pytest.mark.parametrize(
    ("runtime", "package"), [("litert", "ai_edge_litert"), ("onnx", "onnxruntime"), ("fake", None)]
)
def test_running_loads_no_framework_and_one_runtime(tmp_path: Path, runtime: str, package: str | None) -> None:
    bundle = make_classifier_bundle(tmp_path)
    code = (
        "import sys, edgelm_runtimes\n"
        f"with edgelm_runtimes.load(sys.argv[1], runtime={runtime!r}) as session:\n"
        f"    session.classify({TEXTS[0]!r})\n"
    )
    modules = modules_after(code, bundle)
    assert modules.isdisjoint(FRAMEWORKS)
    assert modules & set(RUNTIME_PACKAGES) == {"tokenizers", *({package} if package else ())}


def test_a_bundle_without_tokenizer_does_not_load_tokenizers(tmp_path: Path) -> None:
    bundle = make_classifier_bundle(tmp_path, tokenizer=False)
    code = (
        "import sys, edgelm_runtimes\n"
        "with edgelm_runtimes.load(sys.argv[1], runtime='fake') as session:\n"
        "    session.run({'token_ids': [[1, 2]], 'padding_mask': [[1, 1]]})\n"
    )
    assert "tokenizers" not in modules_after(code, bundle)
