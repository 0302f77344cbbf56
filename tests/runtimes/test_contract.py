"""What every runtime has to do. The answers are NumPy's; `fake` answers its own, and passes everything but those."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import edgelm_runtimes
import numpy as np
import pytest
from bundle_factory import TEXTS, make_classifier_bundle
from edgelm_runtimes import Session
from edgelm_runtimes.program import Program, ProgramOptions
from edgelm_runtimes.registry import RUNTIMES, advice_for, open_program
from tiny_models import VOCABULARY, Weights, signatures, write_onnx, write_tflite

from edgelm.bundle import Port, Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError

LENGTHS = (4, 8, 16)
# Sums of 16 products of numbers below 4, in another order: 16 * 2**-24 * 64 is 6e-5.
TOLERANCE = 1e-4


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if (advice := advice_for(name)) is not None:
        pytest.skip(f"{name} is not usable here: {advice}")
    return name


@pytest.fixture
def weights() -> Weights:
    return Weights.random(seed=1)


@pytest.fixture
def model(runtime: str, weights: Weights, tmp_path: Path) -> tuple[Path, tuple[Signature, ...]]:
    kind = RUNTIMES[runtime].formats[0]
    path = tmp_path / f"model.{kind}"
    if kind == "onnx":
        write_onnx(path, weights)
        return path, signatures("onnx", LENGTHS, 3, "logits")
    write_tflite(path, weights, LENGTHS)
    return path, signatures("tflite", LENGTHS, 3, "logits")


@pytest.fixture
def program(runtime: str, model: tuple[Path, tuple[Signature, ...]]) -> Iterator[Program]:
    opened = open_program(runtime, *model, ProgramOptions(threads=1))
    yield opened
    opened.close()


@pytest.fixture
def session(runtime: str, tmp_path: Path) -> Iterator[Session]:
    with edgelm_runtimes.load(make_classifier_bundle(tmp_path), runtime=runtime, threads=1) as opened:
        yield opened


def inputs(signature: Signature, seed: int = 0, real: int | None = None) -> dict[str, np.ndarray]:
    length = signature.sequence_length or 5
    mask = np.zeros((1, length), np.int32)
    mask[:, :real] = 1
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (1, length)).astype(np.int32)
    return {"token_ids": ids, "padding_mask": mask}


class TestProgram:
    def test_says_what_runs(self, runtime: str, program: Program) -> None:
        facts = program.facts
        assert (facts.runtime, facts.device, facts.threads) == (runtime, "cpu", 1)
        assert facts.runtime_version not in ("", "unknown")
        assert facts.delegate

    def test_every_signature_gives_numpys_answer(
        self, runtime: str, program: Program, model: tuple[Path, tuple[Signature, ...]], weights: Weights
    ) -> None:
        for _ in range(2):  # the second time, every buffer has been used before
            for signature in model[1]:
                for seed, real in ((1, None), (2, 3)):
                    feed = inputs(signature, seed, real)
                    outputs = program.run(signature, feed)
                    assert list(outputs) == ["answer"]
                    assert outputs["answer"].dtype == np.float32
                    assert outputs["answer"].shape == (1, 3)
                    if runtime != "fake":
                        wanted = weights.logits(feed["token_ids"], feed["padding_mask"])
                        np.testing.assert_allclose(outputs["answer"], wanted, rtol=0, atol=TOLERANCE)

    def test_outputs_belong_to_the_caller(self, program: Program, model: tuple[Path, tuple[Signature, ...]]) -> None:
        signature = model[1][0]
        first = program.run(signature, inputs(signature, 1))["answer"]
        kept = first.copy()
        second = program.run(signature, inputs(signature, 2))["answer"]
        np.testing.assert_array_equal(first, kept)
        assert not np.array_equal(first, second)
        assert first.flags.writeable
        first[:] = 0
        np.testing.assert_array_equal(program.run(signature, inputs(signature, 1))["answer"], kept)

    def test_inputs_stay_as_they_are(self, program: Program, model: tuple[Path, tuple[Signature, ...]]) -> None:
        signature = model[1][0]
        feed = inputs(signature)
        kept = {name: value.copy() for name, value in feed.items()}
        program.run(signature, feed)
        for name, value in feed.items():
            np.testing.assert_array_equal(value, kept[name])

    def test_takes_arrays_that_are_not_contiguous(
        self, program: Program, model: tuple[Path, tuple[Signature, ...]]
    ) -> None:
        signature = model[1][0]
        feed = inputs(signature)
        strided = {name: np.repeat(value, 2, axis=1)[:, ::2] for name, value in feed.items()}
        np.testing.assert_array_equal(program.run(signature, strided)["answer"], program.run(signature, feed)["answer"])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"token_ids": None}, "'token_ids' of .* takes int32 .* and got nothing"),
            ({"token_ids": np.zeros((1, 3, 1), np.int32)}, r"got int32 \[1, 3, 1\]"),
            ({"token_ids": np.zeros((1, 4), np.int64)}, "got int64"),
            ({"token_ids": np.zeros((1, 0), np.int32)}, r"got int32 \[1, 0\]"),
            ({"surprise": np.zeros((1, 4), np.int32)}, "has no input surprise"),
        ],
    )
    def test_inputs_that_do_not_fit(
        self,
        program: Program,
        model: tuple[Path, tuple[Signature, ...]],
        change: dict[str, np.ndarray | None],
        message: str,
    ) -> None:
        signature = model[1][0]
        feed = {name: value for name, value in {**inputs(signature), **change}.items() if value is not None}
        with pytest.raises(ExecutionError, match=message):
            program.run(signature, feed)

    def test_a_signature_that_is_not_in_the_file(
        self, runtime: str, program: Program, model: tuple[Path, tuple[Signature, ...]]
    ) -> None:
        path, known = model
        other = Signature("other", 4, known[0].inputs, known[0].outputs)
        with pytest.raises(RuntimeUnavailableError, match="finds no signature 'other'"):
            program.run(other, inputs(known[0]))
        if runtime != "fake":
            with pytest.raises(RuntimeUnavailableError, match="do not belong together"):
                open_program(runtime, path, (other,), ProgramOptions())

    def test_names_that_are_not_in_the_file(self, runtime: str, model: tuple[Path, tuple[Signature, ...]]) -> None:
        if runtime == "fake":
            pytest.skip("fake does not look into the file")
        path, known = model
        output = Port("other", "float32", known[0].outputs[0].shape, "logits")
        other = Signature(known[0].name, known[0].sequence_length, known[0].inputs, (output,))
        with pytest.raises(RuntimeUnavailableError, match=r"outputs of .* are answer, and the manifest says other"):
            open_program(runtime, path, (other,), ProgramOptions())

    def test_after_close(self, program: Program, model: tuple[Path, tuple[Signature, ...]]) -> None:
        program.run(model[1][0], inputs(model[1][0]))
        program.close()
        program.close()
        with pytest.raises(ExecutionError, match="was closed"):
            program.run(model[1][0], inputs(model[1][0]))

    @pytest.mark.parametrize("content", [b"", b"hello", bytes(1000)])
    def test_a_file_that_is_no_model(
        self, runtime: str, model: tuple[Path, tuple[Signature, ...]], content: bytes
    ) -> None:
        if runtime == "fake":
            pytest.skip("fake does not look into the file")
        model[0].write_bytes(content)
        with pytest.raises(RuntimeUnavailableError, match=rf"{runtime} does not open {model[0].name}: \w"):
            open_program(runtime, *model, ProgramOptions())

    def test_a_missing_file(self, runtime: str, model: tuple[Path, tuple[Signature, ...]]) -> None:
        model[0].unlink()
        with pytest.raises(RuntimeUnavailableError, match=f"{runtime} does not open {model[0].name}"):
            open_program(runtime, *model, ProgramOptions())


class TestSession:
    def test_classifies(self, runtime: str, session: Session) -> None:
        answer = session.classify(TEXTS[0], top=3)
        assert [label for label, _ in answer.ranking] == sorted(
            session.manifest.labels or (), key=lambda label: -dict(answer.ranking)[label]
        )
        assert sum(score for _, score in answer.ranking) == pytest.approx(1)
        if runtime != "fake":
            wanted = session._bundle.golden()[0].outputs["answer"][0]
            assert (session.manifest.labels or ())[int(wanted.argmax())] == answer.label

    def test_a_closed_session(self, session: Session) -> None:
        session.close()
        session.close()
        for call in (lambda: session.classify("card"), lambda: session.run({}), lambda: session.encode("card")):
            with pytest.raises(ExecutionError, match="session was closed"):
                call()

    def test_several_threads(self, session: Session) -> None:
        """Each thread asks for one text of its own, of another length, and must only ever get that one's answer."""
        texts = [" ".join(["card", "cash", "money", "now"][: 1 + index % 4] * (1 + index % 3)) for index in range(6)]
        wanted = {text: session.classify(text).score for text in texts}
        wrong: list[object] = []

        def ask(text: str) -> None:
            for _ in range(100):
                score = session.classify(text).score
                if score != wanted[text]:
                    wrong.append((text, score))

        threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_closing_while_another_thread_runs(self, session: Session) -> None:
        ended: list[str] = []

        def ask() -> None:
            try:
                while True:
                    session.classify(TEXTS[0])
            except ExecutionError as error:
                ended.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        session.close()
        for thread in threads:
            thread.join(timeout=30)
        assert ended == ["This session was closed: load the bundle again."] * 3
