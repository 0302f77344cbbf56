"""Turn a llama2.c checkpoint and its tokenizer into a KerasHub Llama that carries its tokenizer with it.

    python examples/stories/make.py stories260K.bin tok512.bin

writes `stories.keras` and `tokenizer.json` beside this script. The larger models of the same author go the same way, with
their SentencePiece model:

    python examples/stories/make.py stories15M.bin tokenizer.model --output build/stories15M
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgelm_converters.checkpoints import read_llama2c, read_llama2c_tokenizer, to_keras_hub
from edgelm_converters.tokenizer import PROBE_TEXTS, check_tokenizer, to_hugging_face

from edgelm.errors import EdgelmError

HERE = Path(__file__).parent


def make(checkpoint_file: Path, tokenizer_file: Path, output: Path) -> None:
    """Write `stories.keras` and `tokenizer.json` into a folder.

    Args:
        checkpoint_file: A llama2.c checkpoint of version 0.
        tokenizer_file: Its `tokenizer.bin`, or the SentencePiece `.model` that it was made from.
        output: Where to.

    Raises:
        EdgelmError: A file cannot be read, or the tokenizer reads a text otherwise than KerasHub's.
    """
    import keras_hub

    checkpoint = read_llama2c(checkpoint_file)
    is_model = tokenizer_file.suffix == ".model"
    proto = tokenizer_file.read_bytes() if is_model else read_llama2c_tokenizer(tokenizer_file)
    preprocessor = keras_hub.models.LlamaCausalLMPreprocessor(
        keras_hub.models.LlamaTokenizer(proto=proto), sequence_length=checkpoint.context_length
    )
    tokenizer = to_hugging_face(preprocessor, max_length=checkpoint.context_length)
    for mismatch in check_tokenizer(preprocessor, tokenizer, PROBE_TEXTS):
        print(f"warning: {mismatch.text!r} is read otherwise than by KerasHub", file=sys.stderr)
    output.mkdir(parents=True, exist_ok=True)
    model = to_keras_hub(checkpoint, name="stories", preprocessor=preprocessor)
    model.save(output / "stories.keras")
    tokenizer.save(str(output / "tokenizer.json"))
    print(f"{output / 'stories.keras'}: {model.count_params():,} parameters, context {checkpoint.context_length}")


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path, help="llama2.c checkpoint, such as stories260K.bin")
    parser.add_argument("tokenizer", type=Path, help="its tokenizer.bin (tok512.bin), or the SentencePiece .model")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (default: this one)")
    arguments = parser.parse_args()
    try:
        make(arguments.checkpoint, arguments.tokenizer, arguments.output)
    except (EdgelmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
