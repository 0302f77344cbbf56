"""A TFLite file whose operators an external delegate takes: libedgetpu, or any other library with the same entry points.

What is left to the processor is computed by TFLite's own kernels, without XNNPACK: with it, its operators and the delegate's
would be told apart by nothing. A delegate that takes nothing is refused; the runtimes say nothing of that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgelm.bundle import Signature
from edgelm.errors import RuntimeUnavailableError
from edgelm_runtimes.adapters.interpreter import InterpreterProgram
from edgelm_runtimes.adapters.shared import first_line, version
from edgelm_runtimes.device import Device
from edgelm_runtimes.program import ProgramFacts, ProgramOptions

__all__ = ["open_delegated", "placed"]

_DELEGATED = "DELEGATE"


def open_delegated(
    runtime: str,
    distribution: str,
    interpreter_module: Any,
    device: Device,
    file: Path,
    signatures: tuple[Signature, ...],
    options: ProgramOptions,
) -> InterpreterProgram:
    """Open a TFLite file with a delegate.

    Args:
        runtime: Its name.
        distribution: As it is installed.
        interpreter_module: With `Interpreter`, `load_delegate` and `OpResolverType`.
        device: With a library.
        file: The model file.
        signatures: How it is called.
        options: Of the program.

    Raises:
        RuntimeUnavailableError: The library cannot be loaded, finds no device, fails, or takes no operator of the file.
    """
    delegate = _load(interpreter_module.load_delegate, device)
    threads = options.threads or 1
    plain = interpreter_module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = interpreter_module.Interpreter(
            str(file), num_threads=threads, experimental_delegates=[delegate], experimental_op_resolver_type=plain
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise RuntimeUnavailableError(f"{device.text} does not take {file.name}: {first_line(error)}") from error
    taken, left = placed(interpreter)
    if not taken:
        hint = "" if device.kind != "edgetpu" else ": only a file that edgetpu_compiler made has something for it"
        raise RuntimeUnavailableError(f"{device.text} takes none of the {left['all']} operators of {file.name}{hint}.")
    notes = () if not left["all"] else (f"{left['all']} operators stay on the processor, the first is {left['first']}",)
    facts = ProgramFacts(
        runtime, version(distribution), device.text, threads, device.library.name if device.library else device.kind,
        notes, placement={device.kind: taken, "cpu": left["all"]},
    )  # fmt: skip
    return InterpreterProgram(interpreter, signatures, facts)


def _load(load_delegate: Callable[..., Any], device: Device) -> Any:
    try:
        return load_delegate(str(device.library), options=device.options)
    except OSError as error:
        raise RuntimeUnavailableError(
            f"{device.text}: {device.library} cannot be loaded ({first_line(error)}). Install it, or give its path as "
            f"delegate:/path/{device.library.name if device.library else 'lib.so'}."
        ) from error
    except AttributeError as error:
        raise RuntimeUnavailableError(
            f"{device.text}: {device.library} is no TFLite delegate ({first_line(error)})."
        ) from error
    except ValueError as error:
        # "Failed to load delegate from PATH", and behind it what the library says: nothing at all, of libedgetpu.
        said = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise RuntimeUnavailableError(
            f"{device.text}: {device.library} finds no device{f' ({said[0]})' if said else ''}. Is it plugged in, and may this "
            "user open it?"
        ) from error


def placed(interpreter: Any) -> tuple[int, dict[str, Any]]:
    """Return how many operators of the first graph a delegate took, and what is left: its number and its first operator.

    TFLite keeps the operators that were replaced in its list. What still runs is what the outputs are reached from, backwards.
    """
    operators = interpreter._get_ops_details()
    made_by = {tensor: entry for entry in operators for tensor in entry["outputs"] if entry["op_name"] != _DELEGATED}
    made_by |= {tensor: entry for entry in operators for tensor in entry["outputs"] if entry["op_name"] == _DELEGATED}
    waiting = [detail["index"] for detail in interpreter.get_output_details()]
    seen: dict[int, Any] = {}
    while waiting:
        entry = made_by.get(waiting.pop())
        if entry is not None and entry["index"] not in seen:
            seen[entry["index"]] = entry
            waiting += [int(tensor) for tensor in entry["inputs"] if tensor >= 0]
    kept = sorted(
        (entry for entry in seen.values() if entry["op_name"] != _DELEGATED), key=lambda entry: entry["index"]
    )
    whole = sum(entry["op_name"] != _DELEGATED for entry in operators)
    first = kept[0]["op_name"] if kept else None
    return whole - len(kept), {"all": len(kept), "first": first}
