"""What compression costs and gains: edgelm's recipes and chains, and what a user would take instead, on trained models.

    python benchmarks/compression_models.py --data DIR                  # once: hours on a small machine
    python benchmarks/compression.py --accuracy-only [--models sst2-minilm] [--peer-python /path/to/python]
    python benchmarks/compression.py --timing-only [--rounds 9]         # on a quiet machine; the files are kept
    python benchmarks/compression_table.py benchmarks/results/compression.json > benchmarks/results/compression.md

Each contestant is made from the same Keras model and the same calibration texts, in a process of its own, and answers every
test text in its own runtime, one at a time. Its answers are held against Keras's on the same texts. Latency is from ids to
logits; all contestants take turns, in an order drawn anew each round, on the same test texts: a text's length is what it is,
and a file of one fixed length pays for its padding, as it would for a user. What cannot be made or run is a row too, with the
reason.

The result is merged into what the output file has, row by row.

Needs: pip install -e '.[convert,keras-hub,litert,onnx]' ai-edge-quantizer; OpenVINO and NNCF where --peer-python is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_models import CACHE, TASKS, Task, encode, load_keras, read_table
from compression_peers import PEERS
from compression_statistics import difference_interval, mcnemar, wilson

HERE = Path(__file__).resolve().parent
RECIPES = (
    "fp32",
    "fp16",
    "dynamic_wi8_afp32",
    "weight_only_wi8_afp32",
    "dynamic_wi4b32_afp32",
    "static_wi8_ai8",
    "static_wi8_ai16",
)
FORMATS = {"tflite": "edgelm-litert", "onnx": "edgelm-onnx"}
# Paths are relative to the model's folder, where the file is written. What is gated is measured on held-out texts.
CHAINS = {
    "trimmed-int8": """
[[step]]
do = "trim-vocabulary"
corpus = "train.csv"

[quantize]
recipe = "int8"
""",
    "pruned-int8": """
[[step]]
do = "prune"
heads = 0.25
ffn = 0.25

[quantize]
recipe = "int8"
""",
    "pruned-distilled-int8": """
[[step]]
do = "prune"
heads = 0.25
ffn = 0.5

[[step]]
do = "distil"
data = "train.csv"
epochs = 1

[quantize]
recipe = "int8"
""",
    "student-int8": """
[[step]]
do = "prune"
layers = 4
heads = 0.25
ffn = 0.25

[[step]]
do = "distil"
data = "train.csv"
epochs = 4
learning-rate = 5e-4
hidden = 1.0

[quantize]
recipe = "int8"
""",
    "aware-int4": """
[[step]]
do = "distil"
data = "train.csv"
epochs = 1
recipe = "int4"

[quantize]
recipe = "int4"
""",
    "gated-int4": """
[quantize]
recipe = "int4"

[gate]
metric = "accuracy"
max-drop = 0.005
""",
    "gated-full-int8": """
[quantize]
recipe = "full-int8"

[gate]
metric = "accuracy"
max-drop = 0.005
""",
}
# Of six layers two stay.
ONLY = {"student-int8": ("banking77-minilm", "sst2-minilm")}


@dataclass(frozen=True)
class Contestant:
    """One file in one runtime.

    Attributes:
        name: Of the recipe, the chain or the peer.
        engine: A name of `compression_worker`.
        file: In the folder of files.
        group: What is made in one process: a recipe or a chain in both formats, or a peer's file.
    """

    name: str
    engine: str
    file: str
    group: str


def contestants() -> list[Contestant]:
    ours = [
        Contestant(name, engine, f"{name}-{target}.edgelm", name)
        for name in (*RECIPES, *CHAINS)
        for target, engine in FORMATS.items()
    ]
    peers = [Contestant(name, peer.engine, name + peer.suffix, name) for name, peer in PEERS.items() if peer.engine]
    return ours + peers


# ---------------------------------------------------------------------------------------------------- making files


def make_ours(name: str, task: Task, cache: Path, folder: Path) -> None:
    """Convert by one recipe or chain into each format that is not there; a refusal is written beside."""
    import edgelm

    source = cache / task.name
    chain = CHAINS.get(name)
    recipe = name if chain is None else source / f"{name}.toml"
    if chain is not None:
        Path(recipe).write_text(chain)
    for target in FORMATS:
        output = folder / f"{name}-{target}.edgelm"
        refusal = refusal_of(output)
        if output.exists() or refusal.exists():
            continue
        try:
            edgelm.convert(
                source / "model.keras", output, to=[target], recipe=recipe, tokenizer=source / "tokenizer.json",
                labels=source / "labels.txt", calibration=source / "calibration.csv",
                validation=source / "held_out.csv" if chain is not None and "[gate]" in chain else None,
                sequence_length=task.tokens, custom_objects=task.custom_objects, force=True,
            )  # fmt: skip
        except edgelm.EdgelmError as error:
            refusal.write_text(str(error))


def make(contestant: Contestant, task: Task, arguments: argparse.Namespace, folder: Path) -> str | None:
    """Return None where the contestant's file is there now, or why it is not."""
    if contestant.group not in PEERS:
        command = [sys.executable, __file__, "--make", contestant.group, task.name, str(folder)]
        command += ["--cache", str(arguments.cache)]
        return run_maker(command, folder / contestant.file)
    for name in (*needs(contestant.group), contestant.group):
        peer = PEERS[name]
        python = arguments.peer_python if peer.apart else sys.executable
        command = [python, str(HERE / "compression_peers.py"), name, task.name, str(arguments.cache), str(folder)]
        file = folder / (name + peer.suffix)
        reason = run_maker([*command, "--tokens", str(task.tokens)], file)
        if reason is not None:
            return reason if name == contestant.group else f"{name}: {reason}"
    return None


def needs(name: str) -> tuple[str, ...]:
    return tuple(found for need in PEERS[name].needs for found in (*needs(need), need))


def run_maker(command: list[str], file: Path) -> str | None:
    """Return None where the file is there, made now or before, or why it is not; what was refused is not tried again."""
    refusal = refusal_of(file)
    if not file.exists() and not refusal.exists():
        done = subprocess.run(command, capture_output=True, text=True)
        if not file.exists() and not refusal.exists():
            refusal.write_text(failure(done.returncode, done.stderr))
    return None if file.exists() else refusal.read_text()


def refusal_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.refused")


def forget(contestant: Contestant, folder: Path) -> None:
    """Remove what was made or refused before."""
    file = folder / contestant.file
    refusal_of(file).unlink(missing_ok=True)
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def failure(status: int, log: str) -> str:
    """Return why a process ended: the signal, or the error of its traceback, which libraries' own lines may follow."""
    if status < 0:
        return f"ended by signal {-status}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Fail", "NotImplemented"))]
    return (errors or lines or [f"exit status {status}"])[-1][:300]


def size_bytes(path: Path) -> int:
    """Return the bytes of the model: of a bundle, its model file; of OpenVINO's, both."""
    if path.is_dir():
        return sum(
            f.stat().st_size for f in path.iterdir() if f.name in ("model.tflite", "model.onnx", "model.onnx.data")
        )
    return path.stat().st_size + (path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0)


# ---------------------------------------------------------------------------------------------------- accuracy


def prepare(task: Task, cache: Path, samples: int | None) -> Path:
    """Write the ids of the texts that are measured, and Keras's answers to them; return the folder of files."""
    from tokenizers import Tokenizer

    source, folder = cache / task.name, cache / task.name / "files"
    if not (source / "training.json").exists():
        raise SystemExit(f"There is no model in {source}: make it with compression_models.py --models {task.name}")
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    names = (source / "labels.txt").read_text().split()
    for part in ("calibration", "test"):
        rows = read_table(source / f"{part}.csv")
        step = 1 if part == "calibration" or samples is None else max(1, len(rows) // samples)
        rows = rows[::step][: None if part == "calibration" else samples]
        (folder / f"{part}.json").write_text(json.dumps(encode(tokenizer, [text for text, _ in rows], task.tokens)))
        (folder / f"{part}-texts.json").write_text(json.dumps([text for text, _ in rows]))
        (folder / f"{part}-labels.json").write_text(json.dumps([names.index(label) for _, label in rows]))
    keras_answers(task, cache, folder)
    return folder


def keras_answers(task: Task, cache: Path, folder: Path) -> None:
    from compression_models import batch_of

    path, texts = folder / "keras.json", json.loads((folder / "test.json").read_text())
    if path.exists() and len(json.loads(path.read_text())) == len(texts):
        return
    model = load_keras(task, cache)
    answers = [0] * len(texts)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        packed = batch_of([texts[row] for row in rows], model)
        scores = model(packed if len(packed) > 1 else next(iter(packed.values())), training=False)
        for row, answer in zip(rows, scores.numpy().argmax(axis=-1).tolist(), strict=True):
            answers[row] = answer
    path.write_text(json.dumps(answers))


def accuracy_row(task: Task, contestant: Contestant, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make one contestant, let it answer, and hold it against the labels and against Keras."""
    row: dict[str, Any] = {"model": task.name, "contestant": contestant.name, "engine": contestant.engine}
    reason = make(contestant, task, arguments, folder)
    if reason is not None:
        return row | {"failed": reason}
    row["size_bytes"] = size_bytes(folder / contestant.file)
    with Worker(contestant, folder, 1, arguments.peer_python) as worker:
        answers = worker.ask("labels") if worker.failed is None else None
    if answers is None:
        return row | {"failed": worker.failed}
    labels, keras = (json.loads((folder / name).read_text()) for name in ("test-labels.json", "keras.json"))
    return row | compare(answers, keras, labels)


def compare(answers: list[int], keras: list[int], labels: list[int]) -> dict[str, Any]:
    """Return how many answers are right, with intervals, beside Keras's on the same texts."""
    mine = [answer == label for answer, label in zip(answers, labels, strict=True)]
    theirs = [answer == label for answer, label in zip(keras, labels, strict=True)]
    won = sum(a and not b for a, b in zip(mine, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(mine, theirs, strict=True))
    total = len(labels)
    return {
        "samples": total,
        "right": sum(mine),
        "keras_right": sum(theirs),
        "won": won,
        "lost": lost,
        "same_label": sum(a == b for a, b in zip(answers, keras, strict=True)),
        "accuracy_interval": wilson(sum(mine), total),
        "difference_interval": difference_interval(won, lost, total),
        "mcnemar_p": mcnemar(won, lost),
    }


# ---------------------------------------------------------------------------------------------------- latency


class Worker:
    """A contestant's process; `failed` says why there is none."""

    def __init__(self, contestant: Contestant, folder: Path, threads: int, peer_python: str) -> None:
        apart = contestant.group in PEERS and PEERS[contestant.group].apart
        self._log = (folder / f"{contestant.file}.log").open("w+")
        self._process = subprocess.Popen(
            [peer_python if apart else sys.executable, str(HERE / "compression_worker.py"), contestant.engine,
             str(folder / contestant.file), str(folder / "test.json"), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self.failed: str | None = None
        self._read()

    def ask(self, question: str) -> Any:
        """Return the answer; None where the process failed."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith(("[", '"ready"')):  # a runtime may print a line of its own
                return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        self.failed = failure(self._process.returncode, self._log.read())
        return None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.failed is None:
            self._process.communicate()
        self._log.close()


def latency_rows(task: Task, threads: int, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Let all contestants whose file is there take turns; return a row for each."""
    chosen = [c for c in contestants() if (folder / c.file).exists()]
    workers = {c: Worker(c, folder, threads, arguments.peer_python) for c in chosen}
    running = [c for c, worker in workers.items() if worker.failed is None]
    for contestant in running:
        workers[contestant].ask("time 10")
    seconds: dict[Contestant, list[list[float]]] = {contestant: [] for contestant in running}
    for _ in range(arguments.rounds):
        for contestant in random.sample(running, len(running)):
            # The same texts for all in a round: each worker goes through them in the same order.
            seconds[contestant].append(workers[contestant].ask(f"time {arguments.texts}"))
    for worker in workers.values():
        worker.__exit__()
    rows = []
    for contestant in chosen:
        row: dict[str, Any] = {
            "model": task.name, "threads": threads, "contestant": contestant.name, "engine": contestant.engine
        }  # fmt: skip
        if contestant in seconds:
            medians = [statistics.median(times) for times in seconds[contestant]]
            row |= {"p50_s": statistics.median(medians), "round_p50_s": medians, "texts": arguments.texts}
        else:
            row["failed"] = workers[contestant].failed
        rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------------- driver


def facts() -> dict[str, Any]:
    from dataclasses import asdict

    from edgelm_runtimes.machine import machine_facts, package_versions

    packages = (
        "tensorflow",
        "keras",
        "keras-hub",
        "ai-edge-litert",
        "ai-edge-quantizer",
        "onnxruntime",
        "tf2onnx",
        "numpy",
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": asdict(machine_facts()),
        "versions": package_versions(packages),
    }


def peer_versions(python: str) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps({d.name: d.version for d in m.distributions() if d.name in ('openvino', 'nncf')}))"
    )
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True).stdout)
    return found


def drive(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    result = json.loads(output.read_text()) if output.exists() else {"accuracy": [], "latency": [], "facts": {}}

    order, places = list(TASKS), [(contestant.name, contestant.engine) for contestant in contestants()]

    def replace(section: str, keys: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
        made = {tuple(row[key] for key in keys) for row in rows}
        result[section] = [row for row in result[section] if tuple(row[key] for key in keys) not in made] + rows
        result[section].sort(
            key=lambda row: (order.index(row["model"]), places.index((row["contestant"], row["engine"])))
        )
        found = facts()
        found["versions"] |= peer_versions(arguments.peer_python)
        result["facts"][section] = found
        output.write_text(json.dumps(result, indent=1) + "\n")

    names = arguments.contestants.split(",") if arguments.contestants else []
    for task in (TASKS[name] for name in arguments.models.split(",")):
        folder = prepare(task, arguments.cache, arguments.samples)
        if not arguments.timing_only:
            fitting = [c for c in contestants() if task.name in ONLY.get(c.name, TASKS)]
            chosen = [c for c in fitting if not names or c.name in names]
            for contestant in chosen if arguments.again else ():
                forget(contestant, folder)
            for contestant in chosen:
                row = accuracy_row(task, contestant, folder, arguments)
                shown = (
                    row.get("failed")
                    or f"{row['right'] / row['samples']:.4f} (Keras {row['keras_right'] / row['samples']:.4f})"
                )
                print(f"{task.name} {contestant.engine} {contestant.name}: {shown}", file=sys.stderr, flush=True)
                replace("accuracy", ("model", "contestant", "engine"), [row])
        if not arguments.accuracy_only:
            for threads in map(int, arguments.threads.split(",")):
                rows = latency_rows(task, threads, folder, arguments)
                replace("latency", ("model", "threads", "contestant", "engine"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "compression.json")
    parser.add_argument("--models", default=",".join(TASKS))
    parser.add_argument("--contestants", help="recipes, chains and peers; all without it")
    parser.add_argument("--samples", type=int, help="test texts, evenly spread; all without it")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has OpenVINO and NNCF")
    parser.add_argument("--again", action="store_true", help="make anew what was made or refused before")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--accuracy-only", action="store_true")
    only.add_argument("--timing-only", action="store_true")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--texts", type=int, default=50, help="texts a round")
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    if arguments.make:
        name, task, folder = arguments.make
        make_ours(name, TASKS[task], arguments.cache, Path(folder))
        return
    drive(arguments)


if __name__ == "__main__":
    main()
