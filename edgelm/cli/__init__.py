"""The command line. A command parses, calls one library function and prints.

stdout carries the result, stderr the rest. Exit status: 0 done, 1 an expected failure (one line, no traceback), 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys

import click

from edgelm import __version__
from edgelm.cli.output import complain
from edgelm.errors import EdgelmError

__all__ = ["cli", "main"]

# name -> module of edgelm.cli with a click command of that name. Imported on demand: `edgelm run` on a device must not
# wait for what `edgelm report` needs.
_COMMANDS = {
    "convert": "convert",
    "distill": "distill",
    "run": "run",
    "benchmark": "benchmark",
    "report": "report",
    "runs": "runs",
    "inspect": "inspect",
    "verify": "inspect",
    "pack": "inspect",
    "deploy": "deploy",
    "profiles": "profiles",
    "doctor": "doctor",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"edgelm.cli.{module}"), cmd_name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgelm")
@click.option("--verbose", is_flag=True, help="Show what the runtimes and TensorFlow themselves write to stderr.")
def cli(verbose: bool) -> None:
    r"""Put a trained Keras Transformer onto edge hardware, and prove how it runs there.

    \b
    On a workstation:  edgelm convert model.keras -o NAME.edgelm --tokenizer tokenizer.json --labels labels.txt
    On a device:       edgelm run NAME.edgelm "Where is my card?"
                       edgelm benchmark NAME.edgelm -o run.json && edgelm report run.json -o report.html
    """


def main() -> None:
    """Run the command line and exit."""
    if "--verbose" not in sys.argv:
        _keep_native_messages_off_the_terminal()
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except EdgelmError as error:
        complain(str(error))
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        complain("Interrupted; nothing half-written was left.")
        sys.exit(130)


def _keep_native_messages_off_the_terminal() -> None:
    """Send what native libraries write to stderr to nowhere, and keep Python's own stderr.

    LiteRT tells some 25 lines each time it loads a model, and TensorFlow a dozen; neither has a switch for it. What goes
    wrong in them comes as an exception, and a crash is told by faulthandler.
    """
    try:
        kept = os.dup(2)
    except OSError:
        return  # started without a stderr
    sys.stderr = os.fdopen(kept, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    faulthandler.enable(sys.stderr)
