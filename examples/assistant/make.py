"""Turn the fetched GGUF file into a KerasHub Llama with its tokenizer and chat template.

    python examples/assistant/make.py build/assistant/model.gguf

writes `assistant.keras` (538 MB, float32), `tokenizer.json` and `chat_template.jinja` beside the GGUF file. It needs 2 GB of
memory, and the package `gguf` (pip install 'edgelm[examples]').
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgelm_converters.checkpoints import read_gguf, to_keras_hub

from edgelm.errors import EdgelmError


def make(file: Path, output: Path) -> None:
    """Write the model, its tokenizer and its chat template into a folder.

    Raises:
        EdgelmError: The file cannot be read, or holds another kind of model.
    """
    read = read_gguf(file)
    output.mkdir(parents=True, exist_ok=True)
    model = to_keras_hub(read.checkpoint, name="assistant")
    model.save(output / "assistant.keras")
    read.tokenizer.save(str(output / "tokenizer.json"))
    if read.chat_template is not None:
        (output / "chat_template.jinja").write_text(read.chat_template, encoding="utf-8")
    print(f"{output / 'assistant.keras'}: {read.name}, {model.count_params():,} parameters")


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("gguf", type=Path, help="the file that fetch.py wrote")
    parser.add_argument("--output", type=Path, help="folder to write to (default: that of the GGUF file)")
    arguments = parser.parse_args()
    try:
        make(arguments.gguf, arguments.output or arguments.gguf.parent)
    except (EdgelmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
