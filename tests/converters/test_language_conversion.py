"""From a Keras language model to a bundle that the field's own runtimes open: KerasHub, LiteRT-LM and GenAI give one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import edgelm_runtimes
import numpy as np
import pytest
from edgelm_converters import convert

from edgelm.bundle import open_bundle, pack
from edgelm.errors import ConversionError, InputError, ParityError, RecipeError

keras = pytest.importorskip("keras")
keras_hub = pytest.importorskip("keras_hub")
pytestmark = [
    pytest.mark.needs_tensorflow,
    # KerasHub leaves vocabulary.spm open when it reads it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STORIES = Path(__file__).parents[2] / "examples" / "stories"
PROMPT = "Once upon a time"
NEW_TOKENS = 128
CONTEXT = 256


@pytest.fixture(scope="module")
def stories() -> Any:
    """The shipped language model, with its tokenizer."""
    return keras.models.load_model(STORIES / "stories.keras", compile=False)


@pytest.fixture(scope="module")
def told(stories: Any) -> list[int]:
    """What KerasHub's own `generate` says after the prompt, prompt and start token included."""
    stories.compile(sampler="greedy")
    prompt = stories.preprocessor.generate_preprocess([PROMPT], sequence_length=CONTEXT)
    length = int(np.asarray(prompt["padding_mask"])[0].sum())
    answer = stories.make_generate_function()(prompt, stop_token_ids=None)
    return [int(token) for token in np.asarray(answer["token_ids"])[0, : length + NEW_TOKENS]]


@pytest.fixture(scope="module")
def bundle(stories: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "stories.edgelm"
    convert(stories, path, recipe="fp32", sequence_length=CONTEXT, cache_lengths=[64])
    return path


def test_the_bundle_says_how_it_is_driven(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    assert (manifest.task, manifest.model.family, manifest.model.path) == ("generate", "llama", "recognised")
    assert [artifact.format for artifact in manifest.artifacts] == ["tflite", "onnx", "litertlm"]
    assert manifest.generation is not None
    assert (manifest.generation.context_length, manifest.generation.vocabulary_size) == (CONTEXT, 512)
    assert (manifest.generation.start_id, manifest.generation.stop_ids) == (1, (2,))
    caches = {s.cache.length for s in manifest.artifacts[0].signatures if s.cache is not None}
    assert caches == {64, CONTEXT}
    for artifact in manifest.artifacts:
        assert artifact.parity.max_abs_error <= artifact.parity.bound
        assert artifact.parity.agreement == 1.0
    assert edgelm_runtimes.verify(bundle).passed


@pytest.mark.parametrize("runtime", ["litert", "onnx"])
def test_a_session_generates_what_keras_hub_generates(runtime: str, bundle: Path, told: list[int]) -> None:
    with edgelm_runtimes.load(bundle, runtime=runtime, threads=1) as session:
        result = session.generate(PROMPT, max_new_tokens=NEW_TOKENS).finish()
        prompt = len(told) - NEW_TOKENS
        assert list(result.ids) == told[prompt:]
        assert result.prompt_tokens == prompt


def test_genai_opens_the_folder_and_generates_the_same(bundle: Path, told: list[int]) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(bundle))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(told), do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([told[:-NEW_TOKENS]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert [int(token) for token in generator.get_sequence(0)] == told


def test_litert_lm_opens_the_container_and_generates_the_same(bundle: Path, told: list[int]) -> None:
    litert_lm = pytest.importorskip("litert_lm")
    engine = litert_lm.Engine(str(bundle / "model.litertlm"), backend=litert_lm.Backend.CPU(thread_count=1))
    try:
        session = engine.create_session(apply_prompt_template=False, max_output_tokens=NEW_TOKENS)
        session.run_prefill([PROMPT])
        (text,) = session.run_decode().texts
        session.close()
    finally:
        engine.close()
    with edgelm_runtimes.load(bundle, runtime="litert", threads=1) as session:
        assert text.strip() == session.generate(PROMPT, max_new_tokens=NEW_TOKENS).finish().text.strip()


def test_a_packed_bundle_generates(bundle: Path, told: list[int], tmp_path: Path) -> None:
    packed = pack(bundle, tmp_path / "packed.edgelm", force=False)
    with edgelm_runtimes.load(packed, runtime="litert", threads=1) as session:
        assert list(session.generate(PROMPT, max_new_tokens=8).finish().ids) == told[-NEW_TOKENS : 8 - NEW_TOKENS]


@pytest.mark.parametrize("recipe", ["fp16", "int8", "int4"])
def test_every_recipe_states_its_perplexity(recipe: str, stories: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((STORIES / "README.md").read_text().split("> ")[1] + "\n" + "Tom had a dog. The dog was big.\n")
    made = convert(
        stories, tmp_path / "m.edgelm", recipe=recipe, sequence_length=128, calibration=text, validation=text,
        to=["tflite", "onnx"],
    )  # fmt: skip
    assert any("of the calibration text" in note for note in made.manifest.notes) == (recipe != "fp16")
    sizes = []
    for artifact in made.manifest.artifacts:
        assert artifact.perplexity is not None
        assert artifact.perplexity.tokens > 20
        # Held to the recipe's bound by the conversion itself; here, that it is no other model.
        assert abs(np.log(artifact.perplexity.artifact / artifact.perplexity.keras)) < np.log(1.15)
        sizes.append(artifact.size_bytes)
    assert max(sizes) < 0.75 * 4 * made.manifest.model.parameters


def test_scores_that_would_take_too_much_memory_count_for_the_perplexity_alone(
    stories: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm_converters.language._SCORE_BYTES", 1)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a cat.\nThe dog was big.\nTom had a red ball.\n")
    made = convert(stories, tmp_path / "m.edgelm", recipe="fp32", sequence_length=64, validation=text, to=["onnx"])
    (artifact,) = made.manifest.artifacts
    assert artifact.parity.samples == 1
    assert artifact.perplexity is not None
    encoded = [stories.preprocessor.tokenizer.tokenize(line) for line in text.read_text().splitlines()]
    assert artifact.perplexity.tokens == sum(len(ids) for ids in encoded)  # the start token is not predicted
    assert edgelm_runtimes.verify(made.path).passed


def test_a_lie_is_not_written(stories: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgelm_converters import language_bundle

    honest = language_bundle.keras_scores

    def lying(*arguments: Any) -> Any:
        scores = honest(*arguments)
        return lambda ids: scores(np.roll(ids, 1))

    monkeypatch.setattr(language_bundle, "keras_scores", lying)
    with pytest.raises(ParityError, match=r"off by up to .* Nothing was written"):
        convert(stories, tmp_path / "m.edgelm", recipe="fp32", sequence_length=64, to=["onnx"])
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_tokenizer_takes_ids(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=40, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=48
    )
    made = convert(backbone, tmp_path / "m.edgelm", recipe="fp32")
    assert [artifact.format for artifact in made.manifest.artifacts] == ["tflite", "onnx"]
    assert made.manifest.generation is not None
    assert made.manifest.generation.context_length == 48
    assert any("No .litertlm was written" in note for note in made.manifest.notes)
    with edgelm_runtimes.load(made.path, threads=1) as session:
        ids = np.array([3, 5, 8], np.int32)
        first = session.generate(ids.tolist(), max_new_tokens=1).finish().ids[0]
    hidden = backbone({"token_ids": ids[None], "padding_mask": np.ones((1, 3), np.int32)})
    assert first == int(np.asarray(backbone.token_embedding(hidden, reverse=True))[0, -1].argmax())
    with pytest.raises(ConversionError, match="holds its tokenizer, and this model has none"):
        convert(backbone, tmp_path / "other.edgelm", to=["litertlm"])


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1")  # Keras, where it is asked with one token
@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_a_decoder_that_no_reader_knows_is_told_why_and_runs_in_one_shot(target: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(2)
    backbone = keras_hub.models.BloomBackbone(
        vocabulary_size=40, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=32
    )
    model = keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)
    made = convert(model, tmp_path / "m.edgelm", recipe="fp32", sequence_length=24, to=[target])
    assert (made.manifest.task, made.manifest.model.path) == ("raw", "traced")
    assert made.manifest.model.reason is not None
    assert "is a BloomDecoder" in made.manifest.model.reason
    ids = np.array([[3, 5, 8, 13]], np.int32)
    mask = np.ones_like(ids)
    with edgelm_runtimes.load(made.path, threads=1) as session:
        (scores,) = session.run({"token_ids": ids, "padding_mask": mask}).values()
    wanted = np.asarray(model({"token_ids": ids, "padding_mask": mask}))
    # One layer of sums of at most 40 float32 terms near 1.
    np.testing.assert_allclose(scores, wanted, atol=40 * 2**-24 * 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 1}, "leaves no room for an answer"),
        ({"cache_lengths": [512], "sequence_length": 64}, "Cache lengths are between 2 and the context, 64"),
        ({"labels": ["a", "b"]}, "the model generates text: it has no classes"),
        ({"chat_template": "missing.jinja"}, "chat template missing.jinja cannot be read"),
    ],
)
def test_what_does_not_fit_a_language_model(
    options: dict[str, Any], message: str, stories: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        convert(stories, tmp_path / "m.edgelm", **options)
    assert not list(tmp_path.iterdir())


def encoder() -> Any:
    ids = keras.Input((16,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(20, 8)(ids)
    x = keras.layers.LayerNormalization()(x + keras.layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(ids, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(x)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": ["litertlm"]}, RecipeError, "holds a language model, and this model is"),
        ({"cache_lengths": [16]}, InputError, "--cache-length is for language models"),
    ],
)
def test_what_only_a_language_model_takes(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        convert(encoder(), tmp_path / "m.edgelm", **options)
    assert not list(tmp_path.iterdir())
