"""``edgelm run`` of a language model: what is streamed where, in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from bundle_factory import make_classifier_bundle, make_generating_bundle

from edgelm.cli import cli
from edgelm.errors import InputError


def edgelm(*arguments: str | Path, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgelm", "run", *map(str, arguments)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, errors="replace", **options
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Without stop tokens, the answers of the fake model go on until something else ends them.
    return make_generating_bundle(tmp_path_factory.mktemp("bundle"), stop_ids=(), context_length=4000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_generating_bundle(tmp_path_factory.mktemp("bundle"), stop_ids=(), name="small")


FAKE = ("--runtime", "fake")


def test_the_answer_on_stdout_and_the_rest_on_stderr(bundle: Path) -> None:
    result = edgelm(bundle, "the cash", *FAKE, "--max-new-tokens", "12")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n")
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("edgelm: 12 tokens, the first after ")
    assert lines[0].endswith("; ended: length")
    assert " a second" in lines[0]


def test_json_is_one_object_an_answer(bundle: Path) -> None:
    result = edgelm(bundle, "the cash", *FAKE, "--json", "--max-new-tokens", "5", "--stop", "zz", "--seed", "3", "--top-k",
                    "5", "--temperature", "0.8", "--top-p", "0.9", "--min-p", "0.01", "--repetition-penalty", "1.1",
                    "--deadline-ms", "60000", "--window", "4")  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert (answer["prompt"], answer["finish_reason"], len(answer["ids"])) == ("the cash", "length", 5)
    assert answer["ttft_s"] > 0
    assert len(answer["token_s"]) == 4


def test_every_line_of_stdin_is_a_prompt(bundle: Path) -> None:
    result = edgelm(bundle, *FAKE, "--max-new-tokens", "3", stdin="the\n\ncash\n")
    assert result.returncode == 0
    assert result.stderr.count("; ended: length") == 2


def test_a_conversation_goes_on_from_what_was_said(bundle: Path) -> None:
    result = edgelm(bundle, *FAKE, "--chat", "--json", "--max-new-tokens", "4", stdin="hi\nmore\n")
    assert result.returncode == 0, result.stderr
    decoder, text, answers = json.JSONDecoder(), result.stdout, []
    while text.strip():
        answer, end = decoder.raw_decode(text.lstrip())
        answers.append(answer)
        text = text.lstrip()[end:]
    assert [answer["prompt"] for answer in answers] == ["hi", "more"]
    assert answers[1]["cached_tokens"] >= answers[0]["prompt_tokens"]


@pytest.mark.parametrize("how", ["off", "prompt-lookup", "small"])
def test_guessing_gives_the_same_text(bundle: Path, small: Path, how: str) -> None:
    plain = edgelm(bundle, "the the the", *FAKE, "--max-new-tokens", "10")
    guessed = edgelm(
        bundle, "the the the", *FAKE, "--max-new-tokens", "10", "--speculate", small if how == "small" else how
    )
    assert guessed.returncode == 0, guessed.stderr
    assert guessed.stdout == plain.stdout
    assert ("guessed right: " in guessed.stderr) == (how != "off")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top", "3"), "The bundle's task is 'generate', to which --top does not apply"),
        (("--arrays", "x.npz"), "to which --arrays does not apply"),
        (("--temperature", "-1"), "temperature is -1.0, and has to be 0 or more"),
        (("--window", "99999"), "window is 99999"),
        (
            ("--speculate", "magic"),
            "--speculate is 'magic', and has to be off, prompt-lookup, or the path of a smaller",
        ),
    ],
)
def test_what_cannot_be_asked_of_a_language_model(bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        cli.main(["run", str(bundle), "the", *FAKE, *arguments], standalone_mode=False)


def test_what_cannot_be_asked_of_a_classifier(tmp_path: Path) -> None:
    classifier = make_classifier_bundle(tmp_path, fake_files=True)
    result = edgelm(classifier, "cash", *FAKE, "--max-new-tokens", "3", "--chat")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "edgelm: The bundle's task is 'classify', to which --chat, --max-new-tokens does not apply: leave it out.\n"
    )


@pytest.mark.parametrize("arguments", [("--max-new-tokens", "0"), ("--window", "middle"), ("--top-k", "some")])
def test_wrong_usage(bundle: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        cli.main(["run", str(bundle), "the", *FAKE, *arguments], standalone_mode=False)


def test_a_bundle_without_chat_template(tmp_path: Path) -> None:
    result = edgelm(make_generating_bundle(tmp_path, chat_template=None), *FAKE, "--chat", stdin="hi\n")
    assert result.returncode == 1
    assert "has no chat template" in result.stderr


def test_text_is_shown_as_it_comes_and_ctrl_c_ends_it(bundle: Path) -> None:
    command = [sys.executable, "-u", "-m", "edgelm", "run", str(bundle), *FAKE, "--chat", "--max-new-tokens", "3900"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"hi\n")
        assert process.stdout.read(20)  # long before 3,900 tokens are there
        process.send_signal(signal.SIGINT)
        out, errors = b"", b""
        assert process.stderr is not None
        while b"ended: " not in errors:
            ready, _, _ = select.select([process.stdout, process.stderr], [], [], 60)
            assert ready
            for stream in ready:
                data = os.read(stream.fileno(), 65536)
                out, errors = (out + data, errors) if stream is process.stdout else (out, errors + data)
        assert b"ended: cancelled" in errors
        process.stdin.write(b"more\n")  # the conversation goes on
        assert process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        process.stdout.read()
        assert process.wait(60) == 0


def test_a_terminal_gets_no_command_from_a_model(bundle: Path) -> None:
    """The fake model says any byte sooner or later, escape (0x1b) among them."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "edgelm", "run", str(bundle), "the", *FAKE, "--max-new-tokens", "1500"]
    shown = b""
    with subprocess.Popen(command, stdout=slave, stderr=subprocess.PIPE):
        os.close(slave)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                data = os.read(master, 65536)
            except OSError:  # the terminal's other end was closed
                break
            if not data:
                break
            shown += data
    os.close(master)
    plain = edgelm(bundle, "the", *FAKE, "--max-new-tokens", "1500").stdout
    assert "\x1b" in plain
    assert b"\x1b" not in shown
    assert len(shown) > 500
