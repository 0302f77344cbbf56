"""Run the translation example's weights in CTranslate2: write its model from them once, then answer on stdin.

    python translation_ctranslate2.py WEIGHTS.npz FOLDER TYPE THREADS

It runs in whatever interpreter has `ctranslate2` and NumPy, and needs nothing of this project. WEIGHTS.npz is what
`translation_peers.write_weights` writes; FOLDER is made; TYPE is one of CTranslate2's, such as float32 or int8. A question is
one line, a JSON list of source ids with [END] behind; its answer is ``{"ids": [...], "seconds": s}``, greedy.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.specs import TransformerSpec
from numpy.typing import NDArray

__all__ = ["build_spec", "serve"]

Weights = dict[str, NDArray[Any]]


def build_spec(weights: Weights) -> TransformerSpec:
    """Return CTranslate2's pre-norm Transformer with the weights of `examples/translation/model.py`.

    Args:
        weights: Keras's path of each weight -> its array; ``tokens``, the vocabulary by id; ``heads``, an integer.
    """
    blocks = [
        sum(name.startswith(side) and name.endswith("/attention/query/kernel") for name in weights)
        for side in ("encoder_", "decoder_")
    ]
    spec = TransformerSpec.from_config(blocks, int(weights["heads"]), pre_norm=True)
    for side, name in ((spec.encoder, "encoder"), (spec.decoder, "decoder")):
        source = "source_embedding" if name == "encoder" else "target_embedding"
        embeddings = side.embeddings[0] if name == "encoder" else side.embeddings
        embeddings.weight = weights[f"{source}/token/embeddings"]
        side.scale_embeddings = False
        side.position_encodings.encodings = weights[f"{source}/position/embeddings"]
        _norm(side.layer_norm, weights, f"{name}_normalization")
        for number, layer in enumerate(side.layer):
            place = f"{name}_{number}"
            _attention(layer.self_attention, weights, f"{place}/attention", (("query", "key", "value"),))
            if name == "decoder":
                _attention(layer.attention, weights, f"{place}/cross_attention", (("query",), ("key", "value")))
            _norm(layer.ffn.layer_norm, weights, f"{place}/feed_forward_normalization")
            _linear(layer.ffn.linear_0, weights, f"{place}/expand")
            _linear(layer.ffn.linear_1, weights, f"{place}/contract")
    _linear(spec.decoder.projection, weights, "logits")
    tokens = [str(token) for token in weights["tokens"]]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.layer_norm_epsilon = 1e-5
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = "[UNK]", "[START]", "[END]"
    spec.config.decoder_start_token = "[START]"  # noqa: S105
    spec.validate()
    return spec


def _norm(norm: Any, weights: Weights, place: str) -> None:
    norm.gamma, norm.beta = weights[f"{place}/gamma"], weights[f"{place}/beta"]


def _linear(linear: Any, weights: Weights, place: str) -> None:
    linear.weight, linear.bias = weights[f"{place}/kernel"].T.copy(), weights[f"{place}/bias"]


def _attention(attention: Any, weights: Weights, place: str, groups: tuple[tuple[str, ...], ...]) -> None:
    """Fill the projections, of which those of a group are one matrix: Keras has (D, heads, size), and (heads, size, D) last."""
    _norm(attention.layer_norm, weights, f"{place}_normalization")
    for linear, group in zip(attention.linear, groups, strict=False):
        kernels = [weights[f"{place}/{part}/kernel"] for part in group]
        linear.weight = np.concatenate([kernel.reshape(len(kernel), -1).T for kernel in kernels])
        linear.bias = np.concatenate([weights[f"{place}/{part}/bias"].reshape(-1) for part in group])
    kernel = weights[f"{place}/attention_output/kernel"]
    attention.linear[-1].weight = kernel.reshape(-1, kernel.shape[-1]).T.copy()
    attention.linear[-1].bias = weights[f"{place}/attention_output/bias"]


def serve(folder: Path, kind: str, threads: int, tokens: list[str]) -> None:
    """Answer every line of stdin."""
    translator = ctranslate2.Translator(str(folder), compute_type=kind, inter_threads=1, intra_threads=threads)
    number = {token: place for place, token in enumerate(tokens)}
    length = 64  # positions of the decoder, and so tokens of an answer
    for line in sys.stdin:
        source = [tokens[place] for place in json.loads(line)]
        started = time.perf_counter()
        # A translation may be empty, as Keras's may; by default CTranslate2 forbids it.
        found = translator.translate_batch([source], beam_size=1, min_decoding_length=0, max_decoding_length=length)
        seconds = time.perf_counter() - started
        print(
            json.dumps({"ids": [number[token] for token in found[0].hypotheses[0]], "seconds": seconds}),
            flush=True,
        )


def main() -> None:
    """Write the model, then serve."""
    path, folder, kind, threads = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    with np.load(path) as arrays:
        weights = dict(arrays)
    spec = build_spec(weights)
    spec.optimize(quantization=kind)
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    serve(folder, kind, threads, [str(token) for token in weights["tokens"]])


if __name__ == "__main__":
    main()
