"""Chat formats that are documented by their makers, as Jinja templates, and which vocabulary belongs to which.

Each renders ``messages`` (dicts with ``role``: system, user or assistant, and ``content``), with ``bos_token``,
``eos_token`` and ``add_generation_prompt`` as Hugging Face's ``apply_chat_template`` passes them. White space is cut by the
templates themselves, so that they render alike whatever the environment's ``trim_blocks`` says.

Sources: the model cards of Gemma (https://ai.google.dev/gemma/docs/core/prompt-structure), Llama 3
(https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/), Mistral Instruct, Phi-3 and Qwen.
"""

from __future__ import annotations

from importlib import resources

__all__ = ["FORMATS", "read_format"]

FORMATS: dict[str, tuple[str, ...]] = {
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "phi3": ("<|user|>", "<|assistant|>", "<|end|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "mistral": (),
}
"""Format -> the tokens that a vocabulary must have for it; Mistral's has none of its own."""


def read_format(name: str) -> str:
    """Return the Jinja text of a format of `FORMATS`."""
    return resources.files(__name__).joinpath(f"{name}.jinja").read_text(encoding="utf-8")
