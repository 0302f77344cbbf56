"""Speculative decoding by prompt lookup, on answers that repeat their prompt: how much faster a token comes.

    python benchmarks/speculation.py build/assistant.edgelm [--runtime onnx] [-o benchmarks/results/speculation.json]

Three tasks of an assistant (examples/assistant makes the bundle): to repeat a text, to correct it, to sum it up. Each is
answered with and without guessing, in turns. The tokens are the same but for near ties: several tokens in one call are rounded
in another order than one, and the result says from which token on an answer is another. A time is the mean of a token after the
first, the best of the rounds; the answers take the likeliest token.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TEXT = (
    "The committee met on Tuesday to discuss the new bridge over the river. Members agreed that the bridge should be finished "
    "before the winter, and that the old road should stay open until then. The engineer said that the steel had arrived late, "
    "and that the work would take four more months. The mayor thanked the workers and asked for a weekly report."
)
TASKS = {
    "repeat": f"Repeat the following text word for word:\n\n{TEXT}",
    "correct": "Correct the spelling in this text and return the whole text:\n\n"
    + TEXT.replace("committee", "comittee").replace("weekly", "weekley"),
    "sum up": f"Summarize the following text in two sentences, using its own words:\n\n{TEXT}",
}
TOKENS = 100


def measure(session: Any, prompt: str, rounds: int) -> dict[str, Any]:
    """Answer with and without guesses, in turns."""
    seconds: dict[str, list[float]] = {"off": [], "prompt-lookup": []}
    answers: dict[str, Any] = {}
    for _ in range(rounds):
        for speculate, times in seconds.items():
            messages = [{"role": "user", "content": prompt}]
            answer = session.chat(
                messages, max_new_tokens=TOKENS, temperature=0, speculate=speculate, inexact=True
            ).finish()
            times.append(sum(answer.token_s) / len(answer.token_s))
            answers[speculate] = answer
    plain, guessed = answers["off"].ids, answers["prompt-lookup"].ids
    different = (index for index, (one, other) in enumerate(zip(plain, guessed, strict=False)) if one != other)
    return {
        "same_tokens": plain == guessed,
        "first_different": next(different, None),
        "seconds_a_token": seconds,
        "ratio": min(seconds["off"]) / min(seconds["prompt-lookup"]),
        "tokens": len(answers["off"].ids),
        "speculation": asdict(answers["prompt-lookup"].speculation),
        "answer": answers["off"].text,
    }


def main() -> None:
    from edgelm_runtimes.machine import machine_facts

    import edgelm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime", default="onnx")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "speculation.json")
    arguments = parser.parse_args()
    with edgelm.load(arguments.bundle, runtime=arguments.runtime, threads=arguments.threads) as session:
        tasks = {name: measure(session, prompt, arguments.rounds) for name, prompt in TASKS.items()}
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": asdict(machine_facts()),
            "bundle": {
                "name": session.manifest.name,
                "recipe": session.manifest.recipe,
                "model": session.manifest.model.name,
            },
            "runtime": asdict(session.facts),
            "tasks": tasks,
        }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for name, task in tasks.items():
        times = " -> ".join(f"{min(values) * 1e3:.1f}" for values in task["seconds_a_token"].values())
        counts = task["speculation"]
        line = f"{name:8} {times} ms a token, {task['ratio']:.2f} times; {counts['accepted']} of {counts['proposed']} guesses"
        print(line if task["same_tokens"] else f"{line}; another answer from token {task['first_different']} on")


if __name__ == "__main__":
    main()
