"""Chat: templates as Hugging Face writes them, and histories that are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import make_byte_tokenizer
from edgelm_runtimes import Conversation, Session
from edgelm_runtimes.adapters.fake_causal import FakeCausalProgram
from edgelm_runtimes.chat_template import ChatTemplate
from test_generation import make_session

from edgelm.errors import BundleError, InputError

TOKENIZER = make_byte_tokenizer()
USER = {"role": "user", "content": "hi"}
# As SmolLM2-Instruct's: its rules for white space are what most templates rely on.
TEMPLATE = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
{{ '<|start|>system\nBe brief.<|end|>\n' }}
    {% endif %}
{{ '<|start|>' + message['role'] + '\n' + message['content'] | trim + '<|end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|start|>assistant\n' }}
{% endif %}"""


def render(source: str, messages: Sequence[Any] = (USER,), **tokens: str) -> str:
    return ChatTemplate(source, **{"start": "<s>", "stop": "</s>", **tokens}).render(list(messages))


def answers(*texts: str) -> Any:
    """Return scores that answer the n-th user message with the n-th text."""
    scripts = [[*TOKENIZER.encode(text, add_special_tokens=False).ids, 1] for text in texts]
    head = TOKENIZER.encode("<|start|>assistant\n", add_special_tokens=False).ids

    def scores(ids: Sequence[int]) -> np.ndarray:
        starts = [end for end in range(len(head), len(ids) + 1) if list(ids[end - len(head) : end]) == head]
        script = scripts[len(starts) - 1]
        return np.eye(TOKENIZER.get_vocab_size(), dtype=np.float32)[script[min(len(ids) - starts[-1], len(script) - 1)]]

    return scores


class TestTemplate:
    def test_white_space_as_hugging_face_has_it(self) -> None:
        # A line of a block leaves nothing, the line end after an expression stays.
        assert render(TEMPLATE) == (
            "<|start|>system\nBe brief.<|end|>\n\n<|start|>user\nhi<|end|>\n\n<|start|>assistant\n\n"
        )

    def test_what_templates_use(self) -> None:
        assert render("{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}") == "<s>|</s>|True"
        assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "hi"}]'
        assert render("{{ {'a': \"<é'\"} | tojson(indent=1) }}") == '{\n "a": "<é\'"\n}'
        assert render("{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}"
                      "{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}") == "3"  # fmt: skip
        assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "hi"
        assert len(render("{{ strftime_now('%Y') }}")) == 4

    def test_a_refusal_is_told_in_the_template_s_words(self) -> None:
        with pytest.raises(InputError, match="does not take these messages: roles must alternate"):
            render("{{ raise_exception('roles must alternate') }}")

    @pytest.mark.parametrize(
        "source",
        [
            "{{ messages.append(1) }}",
            "{{ messages[0].__class__.__mro__ }}{{ messages[0].__class__.__mro__[0] }}",
            "{{ [].__class__.__base__.__subclasses__() }}",
            "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['json'].x }}",
            "{{ messages[7].role.x }}",
            "{{ 1 / 0 }}",
            "{{ 'a' + 1 }}",
            "{{ 'a' * 10000000000 }}",
            "{{ 9 ** 9 ** 9 }}",
            "{% for i in range(100000) %}{{ 'aaaaaaaaaaaaaaaa' }}{% endfor %}",
            "{% for i in range(10000000) %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% include '/etc/passwd' %}",
        ],
    )
    def test_what_a_template_must_not_do(self, source: str) -> None:
        with pytest.raises(InputError, match="chat template fails on these messages"):
            render(source)

    def test_no_template(self) -> None:
        with pytest.raises(BundleError, match="is no valid Jinja"):
            render("{% for %}")

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ([], "at least one of them"),
            ("hi", "A conversation is a list of messages"),
            (USER, "A conversation is a list of messages"),
            (["hi"], "Message 0 is 'hi', and needs a 'role' and a 'content'"),
            ([USER, {"role": "user"}], "Message 1 is"),
            ([{"role": "user", "content": 5}], "Message 0 is"),
        ],
    )
    def test_what_is_no_conversation(self, tmp_path: Path, messages: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            make_session(tmp_path).chat(messages)


def talker(folder: Path, *texts: str, **options: Any) -> tuple[Session, FakeCausalProgram]:
    session = make_session(folder, answers(*texts), context_length=256, **options)
    program = session._program
    assert isinstance(program, FakeCausalProgram)
    return session, program


def test_the_prompt_is_the_template_s_without_more_special_tokens(tmp_path: Path) -> None:
    session, program = talker(tmp_path, "the cash", tokenizer=make_byte_tokenizer("<|start|>"), start_id=0)
    result = session.chat([USER]).finish()
    prompt = TOKENIZER.encode("<|start|>user\nhi<|end|>\n<|start|>assistant\n", add_special_tokens=False).ids
    assert program.ids[: len(prompt)] == prompt
    assert (result.prompt_tokens, result.text, result.finish_reason) == (len(prompt), "the cash", "stop_token")


def test_a_longer_history_is_computed_from_where_it_is_new(tmp_path: Path) -> None:
    session, program = talker(tmp_path, "the cash", "and the card")
    conversation = Conversation(session, system="Be brief.")
    first = conversation.say("hi").finish()
    program.calls.clear()
    second = conversation.say("and then?").finish()
    assert (first.text, second.text) == ("the cash", "and the card")
    # All but the stop token, which was chosen and never computed.
    assert second.cached_tokens == first.prompt_tokens + len(first.ids)
    assert program.calls[0][0] == second.cached_tokens
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "the cash"},
        {"role": "user", "content": "and then?"},
        {"role": "assistant", "content": "and the card"},
    ]


def test_an_answer_that_was_stopped_counts_as_far_as_it_came(tmp_path: Path) -> None:
    session, _ = talker(tmp_path, "the cash", "and the card")
    conversation = Conversation(session)
    piece = next(conversation.say("hi"))
    assert conversation.messages[-1] == {"role": "assistant", "content": piece}
    assert conversation.say("more").finish().text == "and the card"


def test_a_conversation_that_is_too_long_says_so_and_stays_as_it_was(tmp_path: Path) -> None:
    session, _ = talker(tmp_path, "the cash")
    conversation = Conversation(session)
    conversation.say("hi").finish()
    with pytest.raises(InputError, match=r"The prompt has .* tokens, and the model takes 256"):
        conversation.say("x y z " * 100)
    assert len(conversation.messages) == 2


def test_a_bundle_without_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat template: use generate\(\)"):
        make_session(tmp_path, chat_template=None).chat([USER])
