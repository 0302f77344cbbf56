from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import edgelm_runtimes
import numpy as np
import pytest
from bundle_factory import LABELS, TEXTS, make_classifier_bundle
from edgelm_runtimes import Session
from edgelm_runtimes.adapters.fake import FakeProgram
from edgelm_runtimes.program import ProgramOptions
from tiny_models import VOCABULARY

from edgelm.bundle import Signature, open_bundle, pack
from edgelm.errors import BundleError, ExecutionError, InputError, MissingPackageError, RuntimeUnavailableError

RUNTIMES = ("litert", "onnx")


class Recorder:
    """A fake answer that keeps what it was asked."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, np.ndarray]]] = []

    def __call__(self, signature: Signature, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.asked.append((signature.name, dict(inputs)))
        values = [[0.0, 1.0, 2.0]] if self.answer is None else self.answer
        return {"answer": np.array(values, np.float32)}


def fake_session(folder: Path, recorder: Recorder, **options: Any) -> Session:
    bundle = open_bundle(make_classifier_bundle(folder, fake_files=True, **options))
    artifact = bundle.manifest.artifacts[0]
    program = FakeProgram(artifact.signatures, ProgramOptions(threads=1), answer=recorder)
    ticks = itertools.count()
    return Session(bundle, artifact, program, clock=lambda: float(next(ticks)))


class TestClassify:
    def test_all_that_is_told(self, tmp_path: Path) -> None:
        answer = fake_session(tmp_path, Recorder()).classify("where is my card", top=2)
        total = sum(math.exp(value) for value in range(3))
        assert answer.label == "transfer"
        assert answer.score == pytest.approx(math.exp(2) / total)
        assert answer.ranking == ((answer.label, answer.score), ("cash", pytest.approx(math.exp(1) / total)))
        assert (answer.tokens, answer.truncated, answer.sequence_length) == (6, False, 8)
        assert (answer.timing.tokenize_s, answer.timing.run_s, answer.timing.total_s) == (1, 1, 3)

    def test_a_long_text_is_cut_and_says_so(self, tmp_path: Path) -> None:
        answer = fake_session(tmp_path, Recorder()).classify("cash " * 100)
        assert (answer.tokens, answer.truncated, answer.sequence_length) == (16, True, 16)

    def test_several_texts(self, tmp_path: Path) -> None:
        session = fake_session(tmp_path, Recorder())
        assert [answer.tokens for answer in session.classify(list(TEXTS))] == [6, 8, 11]
        assert session.classify(()) == []

    @pytest.mark.parametrize("texts", [None, 5, b"card", {"card"}])
    def test_what_is_no_text(self, tmp_path: Path, texts: Any) -> None:
        with pytest.raises(InputError, match="A text or a list of texts was expected"):
            fake_session(tmp_path, Recorder()).classify(texts)

    def test_the_smallest_bucket_padded_behind(self, tmp_path: Path) -> None:
        recorder = Recorder()
        fake_session(tmp_path, recorder).classify("where is my card")
        name, inputs = recorder.asked[0]
        assert name == "serve_8"
        assert inputs["token_ids"].tolist() == [[2, 4, 5, 6, 7, 3, 0, 0]]
        assert inputs["padding_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
        assert {value.dtype for value in inputs.values()} == {np.dtype(np.int32)}

    def test_full_padding(self, tmp_path: Path) -> None:
        recorder = Recorder()
        fake_session(tmp_path, recorder, lengths=(16,)).classify("cash")
        assert recorder.asked[0][1]["token_ids"].shape == (1, 16)

    def test_a_free_length_that_must_be_filled_up(self, tmp_path: Path) -> None:
        """A model that sees its padding, in a file that would take any length."""
        recorder = Recorder()
        session = fake_session(tmp_path, recorder, formats=("onnx",))
        signature = dataclasses.replace(session.artifact.signatures[0], sequence_length=16)
        session.artifact = dataclasses.replace(session.artifact, signatures=(signature,))
        assert session.classify("cash").sequence_length == 16
        assert recorder.asked[0][1]["token_ids"].shape == (1, 16)

    def test_a_free_length_is_not_padded(self, tmp_path: Path) -> None:
        recorder = Recorder()
        answer = fake_session(tmp_path, recorder, formats=("onnx",)).classify("cash")
        assert recorder.asked[0][1]["token_ids"].shape == (1, 3)
        assert answer.sequence_length == 3

    @pytest.mark.parametrize(
        ("role", "values", "label", "score"),
        [
            ("probabilities", [[0.1, 0.2, 0.7]], "transfer", 0.7),
            ("sigmoid", [[0.9, 0.8, 0.1]], "card", 0.9),
            ("logits", [[1000.0, 0.0, -1000.0]], "card", 1.0),
            ("logits", [[-1e30, -1e30, -1e30]], "card", 1 / 3),
        ],
    )
    def test_what_the_output_means(
        self, tmp_path: Path, role: Any, values: list[list[float]], label: str, score: float
    ) -> None:
        answer = fake_session(tmp_path, Recorder(values), role=role).classify("cash")
        assert (answer.label, answer.score) == (label, pytest.approx(score))

    @pytest.mark.parametrize(
        ("role", "value", "label", "score"),
        [
            ("sigmoid", 0.8, "yes", 0.8),
            ("sigmoid", 0.3, "no", 0.7),
            ("logits", 0.0, "no", 0.5),
            ("logits", -1e30, "no", 1.0),
        ],
    )
    def test_one_output_for_two_labels(self, tmp_path: Path, role: Any, value: float, label: str, score: float) -> None:
        session = fake_session(tmp_path, Recorder([[value]]), role=role, classes=1, labels=("no", "yes"))
        answer = session.classify("cash", top=2)
        assert (answer.label, answer.score) == (label, pytest.approx(score))
        assert len(answer.ranking) == 2

    def test_without_labels_the_index(self, tmp_path: Path) -> None:
        assert fake_session(tmp_path, Recorder(), labels=None).classify("cash").label == "2"

    def test_more_labels_than_there_are(self, tmp_path: Path) -> None:
        assert len(fake_session(tmp_path, Recorder()).classify("cash", top=50).ranking) == 3
        with pytest.raises(InputError, match="at least 1, and 0 was given"):
            fake_session(tmp_path, Recorder(), name="other").classify("cash", top=0)

    def test_nan(self, tmp_path: Path) -> None:
        with pytest.raises(ExecutionError, match="NaN or infinity"):
            fake_session(tmp_path, Recorder([[0, float("nan"), 1]])).classify("cash")

    def test_an_output_for_each_token(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="an answer for each token"):
            fake_session(tmp_path, Recorder(np.zeros((1, 4, 3))), pool=False).classify("cash")

    def test_a_model_that_does_not_classify(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not classify: its output 'answer' is 'embedding'"):
            fake_session(tmp_path, Recorder(), role="embedding").classify("cash")

    def test_a_bundle_without_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"has no tokenizer: give token ids to run\(\)"):
            fake_session(tmp_path, Recorder(), tokenizer=False).classify("cash")


class TestEmbed:
    def test_pooled(self, tmp_path: Path) -> None:
        session = fake_session(tmp_path, Recorder(), role="embedding")
        vector = session.embed("cash")
        assert vector.dtype == np.float32
        assert vector.tolist() == [0, 1, 2]
        assert [value.shape for value in session.embed(["cash", "card"])] == [(3,), (3,)]

    @pytest.mark.parametrize("runtime", RUNTIMES)
    def test_a_row_for_each_token_and_none_for_padding(self, tmp_path: Path, runtime: str) -> None:
        bundle = make_classifier_bundle(tmp_path, role="embedding", pool=False)
        with edgelm_runtimes.load(bundle, runtime=runtime) as session:
            rows = session.embed(TEXTS[0])
            wanted = open_bundle(bundle).golden()[0].outputs["answer"][0]
            assert rows.shape == (6, 3)
            np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-5)

    def test_a_classifier(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="gives no embedding"):
            fake_session(tmp_path, Recorder()).embed("cash")


class TestRun:
    @pytest.mark.parametrize("runtime", RUNTIMES)
    @pytest.mark.parametrize("pool", [True, False])
    def test_the_golden_inputs(self, tmp_path: Path, runtime: str, pool: bool) -> None:
        bundle = make_classifier_bundle(tmp_path, pool=pool)
        with edgelm_runtimes.load(bundle, runtime=runtime) as session:
            for case in open_bundle(bundle).golden():
                outputs = session.run(case.inputs)
                assert outputs["answer"].shape == case.outputs["answer"].shape
                np.testing.assert_allclose(outputs["answer"], case.outputs["answer"], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16, None])
    def test_safe_casts(self, tmp_path: Path, dtype: Any) -> None:
        recorder = Recorder()
        ids: Any = [[2, 5, 3]] if dtype is None else np.array([[2, 5, 3]], dtype)
        fake_session(tmp_path, recorder).run({"token_ids": ids, "padding_mask": [[True, True, True]]})
        assert recorder.asked[0][1]["token_ids"].tolist() == [[2, 5, 3, 0]]
        assert recorder.asked[0][1]["padding_mask"].tolist() == [[1, 1, 1, 0]]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"padding_mask": None}, "takes the inputs token_ids, padding_mask; not given: padding_mask"),
            ({"mask": [[1]]}, "not known: mask"),
            ({"token_ids": [[1.5, 2]]}, "takes int32, and got float64"),
            ({"token_ids": [["a", "b"]]}, "takes int32, and got <U1"),
            ({"token_ids": [[1, 2], [3]]}, "its rows differ in length"),
            ({"token_ids": [1, 2]}, r"takes the shape \[1, 1 to 16\], and got \[2\]"),
            ({"token_ids": [[1, 2], [3, 4]]}, r"takes the shape \[1, 1 to 16\], and got \[2, 2\]"),
            ({"token_ids": np.zeros((1, 0), np.int32)}, r"got \[1, 0\]"),
            ({"token_ids": [[1, 2, 3]]}, "differ in length: token_ids 3, padding_mask 2"),
            ({"token_ids": [[1, VOCABULARY]]}, f"has the id {VOCABULARY}: ids are 0 or more, less than {VOCABULARY}"),
            ({"token_ids": [[1, -1]]}, "has the id -1"),
            ({"token_ids": [[1, 2**40]]}, "has values beyond it"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        inputs = {"token_ids": [[1, 2]], "padding_mask": [[1, 1]], **change}
        with pytest.raises(InputError, match=message):
            fake_session(tmp_path, Recorder()).run({name: value for name, value in inputs.items() if value is not None})

    def test_too_many_tokens(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="has 17 tokens, and the model takes at most 16"):
            fake_session(tmp_path, Recorder()).run({"token_ids": [[1] * 17], "padding_mask": [[1] * 17]})

    def test_the_vocabulary_of_a_bundle_without_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=f"less than {VOCABULARY}"):
            fake_session(tmp_path, Recorder(), tokenizer=False).run({"token_ids": [[99]], "padding_mask": [[1]]})

    def test_a_batch_where_the_file_takes_one(self, tmp_path: Path) -> None:
        bundle = make_classifier_bundle(tmp_path)
        inputs = {"token_ids": [[2, 5, 3], [2, 6, 3]], "padding_mask": [[1, 1, 1], [1, 1, 0]]}
        with edgelm_runtimes.load(bundle, runtime="onnx") as session:
            both = session.run(inputs)["answer"]
            single = session.run({name: value[1:] for name, value in inputs.items()})["answer"]
            np.testing.assert_allclose(both[1:], single, rtol=0, atol=1e-5)
            with pytest.raises(InputError, match="differ in rows"):
                session.run({**inputs, "padding_mask": [[1, 1, 1]]})


class TestLoad:
    def test_a_zip(self, tmp_path: Path) -> None:
        packed = pack(make_classifier_bundle(tmp_path), tmp_path / "packed.edgelm", force=False)
        with edgelm_runtimes.load(packed) as session:
            folder = session._bundle.folder
            assert session.classify(TEXTS[0]).label in LABELS
            assert session.load_s is not None
            assert session.load_s > 0
        assert not folder.exists()

    def test_the_default_is_the_first_verified_runtime(self, tmp_path: Path) -> None:
        with edgelm_runtimes.load(make_classifier_bundle(tmp_path)) as session:
            assert session.facts.runtime == "litert"
            assert session.artifact.format == "tflite"
            assert session.facts.threads >= 1

    def test_threads(self, tmp_path: Path) -> None:
        bundle = make_classifier_bundle(tmp_path)
        for runtime in RUNTIMES:
            with edgelm_runtimes.load(bundle, runtime=runtime, threads=2) as session:
                assert session.facts.threads == 2
        with pytest.raises(InputError, match="at least 1 thread, and 0 were asked for"):
            edgelm_runtimes.load(bundle, threads=0)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"runtime": "litret"}, RuntimeUnavailableError, "Did you mean 'litert'"),
            (
                {"runtime": "onnx", "device": "gpu"},
                RuntimeUnavailableError,
                r"runtime 'onnx' has no device 'gpu' in this edgelm\. It has: cpu",
            ),
            ({"runtime": "tflite"}, MissingPackageError, r"pip install 'edgelm\[tflite\]'"),
        ],
    )
    def test_what_cannot_be_had(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        options: dict[str, str],
        error: type[Exception],
        message: str,
    ) -> None:
        monkeypatch.setattr("edgelm_runtimes.registry.runtime_version", lambda name: None if name == "tflite" else "2")
        with pytest.raises(error, match=message):
            edgelm_runtimes.load(make_classifier_bundle(tmp_path), **options)

    def test_a_zip_that_no_runtime_opens_leaves_nothing_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import tempfile

        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        packed = pack(make_classifier_bundle(tmp_path, fake_files=True), tmp_path / "packed.edgelm", force=False)
        with pytest.raises(RuntimeUnavailableError, match=r"litert does not open model\.tflite"):
            edgelm_runtimes.load(packed, runtime="litert")
        assert list((tmp_path / "temporary").iterdir()) == []

    def test_a_missing_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="There is no bundle at"):
            edgelm_runtimes.load(tmp_path / "none.edgelm")

    def test_the_fake_runtime(self, tmp_path: Path) -> None:
        with edgelm_runtimes.load(make_classifier_bundle(tmp_path, fake_files=True), runtime="fake") as session:
            first, second = session.classify("cash"), session.classify("cash")
            assert first.ranking == second.ranking
            assert "mean nothing" in session.facts.notes[0]
