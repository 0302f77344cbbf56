"""Language models side by side: what a user would pick instead, and edgelm, in one alternating run.

    python benchmarks/generation.py -o benchmarks/results/generation.json [--shapes 15m,110m,135m] [--rounds 5]

For each shape and thread count, every contestant has the same random weights, a process of its own, and takes turns with the
others, in an order drawn anew each round: a prompt of 128 tokens and 128 new ones, greedy, and a prompt of 512 by itself. A
figure is the median over the rounds; a ratio is taken round by round.

edgelm's contestants go through `edgelm_runtimes.registry.open_causal`, one `forward` and one argmax a token; llama.cpp through
`llama_decode` of llama-cpp-python and an argmax; OpenVINO GenAI reads the same GGUF file; ONNX Runtime GenAI and LiteRT-LM
open edgelm's own files, so that what is compared there is the loop, not the file.

The memory bandwidth of the machine is measured in the same run (a sum over 256 MB): bytes of the weights a token cannot be
read faster than that.

Needs: pip install -e '.[convert,litert,onnx,benchmarks]' llama-cpp-python gguf openvino-genai onnxruntime-genai litert-lm-api
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONTEXT = 1024
# name -> layers, width, heads, key/value heads, feed-forward, vocabulary; all of Llama's architecture, tied.
SHAPES = {
    "15m": (6, 288, 6, 6, 768, 32000),
    "110m": (12, 768, 12, 12, 2048, 32000),
    "135m": (30, 576, 9, 3, 1536, 49152),
}
RECIPES = {"fp32": "fp32", "int8": "dynamic_wi8_afp32", "int4": "dynamic_wi4b32_afp32"}
GGUF_TYPES = {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"}
CONTESTANTS = (
    "edgelm-litert",
    "edgelm-onnx",
    "llama.cpp",
    "openvino-genai",
    "onnxruntime-genai",
    "litert-lm",
)
MODULES = {"llama.cpp": "llama_cpp", "openvino-genai": "openvino_genai", "onnxruntime-genai": "onnxruntime_genai"}

Generate = Callable[[int, int], tuple[float, list[float]]]


# ---------------------------------------------------------------------------------------------------- models


def make_spec(shape: str) -> Any:
    """Return a random Llama of that shape, the same each time."""
    import numpy as np
    from edgelm_converters import spec as s

    layers, width, heads, kv_heads, feed_forward, vocabulary = SHAPES[shape]
    A = width // heads
    draw = np.random.default_rng(7)

    def linear(name: str, inputs: int, outputs: int) -> s.Linear:
        return s.Linear(name, (draw.standard_normal((inputs, outputs), np.float32) * inputs**-0.5), None)

    def norm() -> s.Norm:
        return s.Norm("rms", np.ones(width, np.float32), None, 1e-5)

    rotary = s.Rotary((1.0 / 10000.0 ** (np.arange(0, A, 2) / A)).astype(np.float32))

    def layer(index: int) -> s.Layer:
        return s.Layer(
            s.Attention(
                heads, kv_heads, A,
                query=linear(f"{index}/q", width, heads * A), key=linear(f"{index}/k", width, kv_heads * A),
                value=linear(f"{index}/v", width, kv_heads * A), output=linear(f"{index}/o", heads * A, width),
                scale=A**-0.5, causal=True, rotary=rotary,
            ),
            norm(),
            s.FeedForward(
                "silu", up=linear(f"{index}/up", width, feed_forward), down=linear(f"{index}/down", feed_forward, width),
                gate=linear(f"{index}/gate", width, feed_forward),
            ),
            norm(), "pre",
        )  # fmt: skip

    table = draw.standard_normal((vocabulary, width), np.float32) * np.float32(width**-0.5)
    return s.TransformerSpec(
        "llama", shape, s.Embeddings(table, None), s.Stack(()),
        s.Head("none", (), "logits", tokens=s.TokenHead("head", table)), "none", "token_ids", "logits", CONTEXT,
        decoder=s.Stack(tuple(layer(index) for index in range(layers)), norm()),
    )  # fmt: skip


def prepare(shape: str, bits: str, folder: Path) -> None:
    """Make every file that a contestant opens, unless it is there."""
    from edgelm_converters.emit import tflite_decoder
    from edgelm_converters.emit.genai import write_genai
    from edgelm_converters.emit.litertlm import write_litertlm
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
    from edgelm_converters.prepare import prepare_weights

    from edgelm.bundle import GenerationRecord

    here = folder / f"{shape}-{bits}"
    if (here / "ready").exists():
        return
    here.mkdir(parents=True, exist_ok=True)
    original = make_spec(shape)
    # What a user's conversion does: the graph that comes out has further small products in it.
    spec, _ = prepare_weights(original, RECIPES[bits], [prompt_ids(512)])
    record = GenerationRecord(CONTEXT, spec.vocabulary_size, None, (spec.vocabulary_size - 1,))
    signatures = {
        "tflite": tflite_decoder.emit_tflite_decoder(
            spec, here / "model.tflite", recipe=RECIPES[bits], caches=tflite_decoder.default_caches(CONTEXT),
            prefill=tflite_decoder.default_prefill(CONTEXT), verify=tflite_decoder.default_verify(CONTEXT),
        ),
        "onnx": emit_onnx_decoder(spec, here / "model.onnx", recipe=RECIPES[bits], context_length=CONTEXT),
    }  # fmt: skip
    from dataclasses import asdict

    (here / "signatures.json").write_text(
        json.dumps({kind: [asdict(entry) for entry in made] for kind, made in signatures.items()})
    )
    write_tokenizer(here / "tokenizer.json", spec.vocabulary_size)
    write_genai(here, spec, record, context_length=CONTEXT)
    write_litertlm(
        here / "model.litertlm", tflite=here / "model.tflite", tokenizer=here / "tokenizer.json", generation=record,
        chat_template=None,
    )  # fmt: skip
    try:
        write_gguf(original, here / "model.gguf", GGUF_TYPES[bits])
    except ImportError:
        print("gguf is not installed: no llama.cpp and no OpenVINO rows", file=sys.stderr)
    (here / "ready").write_text("")


def pieces(vocabulary: int) -> list[str]:
    """Return a vocabulary of that size, with the letters of bytes first: any tokenizer takes it."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*letters, *(f"piece{index}" for index in range(vocabulary - len(letters) - 1)), "<|end|>"]


def write_tokenizer(path: Path, vocabulary: int) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces(vocabulary))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(path))


def write_gguf(spec: Any, path: Path, kind: str) -> None:
    """Write the spec for llama.cpp: rotary pairs interleaved, everything that is a matrix in the given type."""
    import gguf
    import numpy as np
    from gguf.quants import quantize

    layers = spec.decoder.layers
    attention = layers[0].attention
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(spec.width)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(layers[0].feed_forward.up.kernel.shape[1])
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv(attention.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(attention.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(spec.vocabulary_size)
    writer.add_file_type({"F32": 0, "Q8_0": 7, "Q4_0": 2}[kind])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    names = pieces(spec.vocabulary_size)
    writer.add_token_list(names)
    writer.add_token_types([3 if name == "<|end|>" else 1 for name in names])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(spec.vocabulary_size - 1)
    writer.add_eos_token_id(spec.vocabulary_size - 1)
    quantised = getattr(gguf.GGMLQuantizationType, kind)
    # As llama.cpp's own quantiser does with Q4_0: the table, which is the head too, keeps more bits.
    table_kind = gguf.GGMLQuantizationType.Q8_0 if kind == "Q4_0" else quantised

    def add(name: str, weight: Any, as_kind: Any) -> None:
        weight = np.ascontiguousarray(weight, np.float32)
        if weight.ndim == 1 or as_kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, quantize(weight, as_kind), raw_dtype=as_kind)

    def interleaved(kernel: Any, heads: int) -> Any:
        rows = kernel.T
        return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    add("token_embd.weight", spec.embeddings.token, table_kind)
    add("output_norm.weight", spec.decoder.final_norm.gamma, quantised)
    for index, layer in enumerate(layers):
        part, block = layer.attention, layer.feed_forward
        for name, weight in {
            "attn_norm": layer.attention_norm.gamma,
            "attn_q": interleaved(part.query.kernel, part.heads),
            "attn_k": interleaved(part.key.kernel, part.kv_heads),
            "attn_v": part.value.kernel.T,
            "attn_output": part.output.kernel.T,
            "ffn_norm": layer.feed_forward_norm.gamma,
            "ffn_gate": block.gate.kernel.T,
            "ffn_up": block.up.kernel.T,
            "ffn_down": block.down.kernel.T,
        }.items():
            add(f"blk.{index}.{name}.weight", weight, quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---------------------------------------------------------------------------------------------------- contestants


_SEEDS = itertools.count(3)


def prompt_ids(count: int) -> Any:
    """Return another prompt each time: who keeps the last one's cache would only have to look it up."""
    import numpy as np

    return np.random.default_rng(next(_SEEDS)).integers(300, 30000, count).astype(np.int32)


def open_contestant(contestant: str, here: Path, threads: int) -> Generate:
    """Return a function that reads a prompt and writes an answer, and tells the seconds of each."""
    if contestant.startswith("edgelm-"):
        return open_edgelm(here, contestant.split("-")[1], threads)
    openers = {
        "llama.cpp": open_llama_cpp,
        "openvino-genai": open_openvino,
        "onnxruntime-genai": open_genai,
        "litert-lm": open_litert_lm,
    }
    return openers[contestant](here, threads)


def open_edgelm(here: Path, runtime: str, threads: int) -> Generate:
    import dacite
    import numpy as np
    from edgelm_runtimes.program import ProgramOptions
    from edgelm_runtimes.registry import open_causal

    from edgelm.bundle import Signature

    kind = {"litert": "tflite", "onnx": "onnx"}[runtime]
    entries = json.loads((here / "signatures.json").read_text())[kind]
    signatures = tuple(dacite.from_dict(Signature, entry, dacite.Config(cast=[tuple])) for entry in entries)
    program = open_causal(runtime, here / f"model.{kind}", signatures, ProgramOptions(threads=threads))
    token = np.zeros(1, np.int32)

    def generate(prompt: int, new: int) -> tuple[float, list[float]]:
        ids = prompt_ids(prompt)
        begin = time.perf_counter()
        token[0] = program.forward(ids, 0).argmax()
        stamps = [time.perf_counter()]
        for position in range(prompt, prompt + new - 1):
            token[0] = program.forward(token, position).argmax()
            stamps.append(time.perf_counter())
        return stamps[0] - begin, [after - before for before, after in itertools.pairwise(stamps)]

    return generate


def open_llama_cpp(here: Path, threads: int) -> Generate:
    import llama_cpp
    import numpy as np

    model = llama_cpp.Llama(
        str(here / "model.gguf"), n_ctx=CONTEXT, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    context, vocabulary = model._ctx.ctx, model.n_vocab()

    def decode(ids: list[int]) -> int:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")
        scores = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(ctypes.cast(scores, ctypes.POINTER(ctypes.c_float)), (vocabulary,)).argmax())

    def generate(prompt: int, new: int) -> tuple[float, list[float]]:
        ids = prompt_ids(prompt).tolist()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model._ctx.ctx), True)
        begin = time.perf_counter()
        token = decode(ids)
        stamps = [time.perf_counter()]
        for _ in range(new - 1):
            token = decode([token])
            stamps.append(time.perf_counter())
        return stamps[0] - begin, [after - before for before, after in itertools.pairwise(stamps)]

    return generate


def open_openvino(here: Path, threads: int) -> Generate:
    import openvino as ov
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(here / "model.gguf"), "CPU", INFERENCE_NUM_THREADS=threads)

    def generate(prompt: int, new: int) -> tuple[float, list[float]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        ids = prompt_ids(prompt).astype("int64")[None]
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor((ids >= 0).astype("int64")))
        metrics = pipeline.generate(inputs, config).perf_metrics.raw_metrics
        # Microseconds; of each inference, the prompt's first.
        first = metrics.m_times_to_first_token[0] / 1e6
        return first, [value / 1e6 for value in metrics.token_infer_durations[1:]]

    return generate


def open_genai(here: Path, threads: int) -> Generate:
    import onnxruntime_genai as genai

    config = genai.Config(str(here))
    config.overlay(
        json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}, "search": {}})
    )
    model = genai.Model(config)

    def generate(prompt: int, new: int) -> tuple[float, list[float]]:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=prompt + new, min_length=prompt + new, do_sample=False)
        generator = genai.Generator(model, parameters)
        ids = prompt_ids(prompt)
        begin = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        stamps = [time.perf_counter()]
        for _ in range(new - 1):
            generator.generate_next_token()
            stamps.append(time.perf_counter())
        return stamps[0] - begin, [after - before for before, after in itertools.pairwise(stamps)]

    return generate


def open_litert_lm(here: Path, threads: int) -> Generate:
    import litert_lm

    def generate(prompt: int, new: int) -> tuple[float, list[float]]:
        told = litert_lm.Benchmark(
            str(here / "model.litertlm"), litert_lm.Backend.CPU(thread_count=threads), prefill_tokens=prompt,
            decode_tokens=max(new, 2), max_num_tokens=CONTEXT, cache_dir=str(here),
        ).run()  # fmt: skip
        prefill = told.last_prefill_token_count / told.last_prefill_tokens_per_second
        return prefill, [1 / told.last_decode_tokens_per_second] * max(new - 1, 0)

    return generate


def serve(contestant: str, here: Path, threads: int) -> None:
    """Worker: open the contestant, then answer each line ``prompt new`` on stdin with the seconds of one repetition."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not come between the answers
    begin = time.perf_counter()
    generate = open_contestant(contestant, here, threads)
    generate(8, 2)
    print(json.dumps({"load_s": time.perf_counter() - begin}), file=out, flush=True)
    for line in sys.stdin:
        prompt, new = map(int, line.split())
        prefill, tokens = generate(prompt, new)
        print(
            json.dumps({"prefill_s": prefill, "token_s": tokens, "rss_bytes": resident_bytes()}), file=out, flush=True
        )


def resident_bytes() -> int:
    """Return what the process holds now, clean pages of mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read_bandwidth(threads: int) -> float:
    """Return bytes a second that so many processes read at once: a sum over 256 MB each, the best of five."""
    code = (
        "import numpy as np, time\n"
        "x = np.ones(1 << 25, np.float64)\n"
        "best = 0.0\n"
        "for _ in range(8):\n"
        "    t = time.perf_counter(); x.max(); best = max(best, x.nbytes / (time.perf_counter() - t))\n"
        "print(best)\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(threads)
    ]
    return sum(float(worker.communicate()[0]) for worker in workers)


# ---------------------------------------------------------------------------------------------------- driver


def measure(shape: str, bits: str, threads: int, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Let all contestants take turns, and return a row for each."""
    here = folder / f"{shape}-{bits}"
    workers: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    for contestant in CONTESTANTS:
        rows[contestant] = {"shape": shape, "bits": bits, "threads": threads, "contestant": contestant}
        command = [sys.executable, __file__, "--serve", contestant, str(here), str(threads)]
        log = (here / f"{contestant}.log").open("w")
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        line = worker.stdout.readline()  # type: ignore[union-attr]
        if line.startswith("{"):
            workers[contestant] = worker
            rows[contestant] |= {**json.loads(line), "short": [], "long": []}
        else:
            worker.wait()
            tail = [text for text in (here / f"{contestant}.log").read_text().splitlines() if text.strip()]
            rows[contestant]["failed"] = tail[-1][:300] if tail else f"exit status {worker.returncode}"
    for _ in range(rounds):
        for contestant in random.sample(list(workers), len(workers)):
            for kind, amount in (("short", "128 128"), ("long", "512 1")):
                told = ask(workers[contestant], amount)
                rows[contestant][kind].append(told)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return [summary(row) for row in rows.values()]


def ask(worker: Any, amount: str) -> dict[str, Any]:
    worker.stdin.write(amount + "\n")
    worker.stdin.flush()
    answer: dict[str, Any] = json.loads(worker.stdout.readline())
    return answer


def summary(row: dict[str, Any]) -> dict[str, Any]:
    if "failed" in row:
        return row
    row["decode_tokens_per_s"] = statistics.median(len(r["token_s"]) / sum(r["token_s"]) for r in row["short"])
    row["ttft_128_s"] = statistics.median(r["prefill_s"] for r in row["short"])
    row["prefill_512_tokens_per_s"] = 512 / statistics.median(r["prefill_s"] for r in row["long"])
    row["rss_bytes"] = max(r["rss_bytes"] for r in (*row["short"], *row["long"]))
    return row


def facts() -> dict[str, Any]:
    from dataclasses import asdict

    from edgelm_runtimes.machine import machine_facts, package_versions

    packages = (
        "ai-edge-litert", "onnxruntime", "onnxruntime-genai", "litert-lm-api", "llama-cpp-python", "openvino-genai", "numpy",
    )  # fmt: skip
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": asdict(machine_facts()),
        "versions": package_versions(packages),
        "read_bytes_per_s": {threads: read_bandwidth(threads) for threads in (1, 2)},
    }


def main() -> None:
    global CONTESTANTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "generation.json")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--bits", default=",".join(RECIPES))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="keep the files here, for another run")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        contestant, here, threads = arguments.serve
        serve(contestant, Path(here), int(threads))
        return
    if arguments.prepare:
        shape, bits, folder = arguments.prepare
        prepare(shape, bits, Path(folder))
        return
    CONTESTANTS = tuple(arguments.contestants.split(","))
    folder = arguments.cache or Path(tempfile.mkdtemp(prefix="edgelm-benchmark-"))
    result: dict[str, Any] = {"facts": facts(), "rows": []}
    for shape in arguments.shapes.split(","):
        for bits in arguments.bits.split(","):
            subprocess.run([sys.executable, __file__, "--prepare", shape, bits, str(folder)], check=True)
            for threads in map(int, arguments.threads.split(",")):
                rows = measure(shape, bits, threads, folder, arguments.rounds)
                result["rows"] += rows
                for row in rows:
                    shown = row.get("failed") or (
                        f"{row['decode_tokens_per_s']:8.1f} decode tokens/s, {row['ttft_128_s'] * 1e3:7.1f} ms to the first, "
                        f"{row['prefill_512_tokens_per_s']:8.0f} prefill tokens/s, {row['rss_bytes'] / 1e6:5.0f} MB"
                    )
                    print(f"{shape} {bits} {threads}t {row['contestant']:18} {shown}", file=sys.stderr)
                arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.cache is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
