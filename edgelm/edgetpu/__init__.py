"""The Edge TPU before there is one: what its compiler would take of a file, what it said, and what it made.

>>> check = check_operators("model.tflite")       # by the documentation, without the compiler
>>> record = run_compiler("model.tflite")         # where edgetpu_compiler is installed
>>> inspect_compiled(record.output).cached_bytes

Nothing here needs a runtime, a delegate or a stick; the files are read as bytes.
"""

from edgelm.edgetpu.check import GraphCheck, OperatorCheck, Unmapped, check_operators
from edgelm.edgetpu.compiled import Compiled, Executable, inspect_compiled, is_compiled
from edgelm.edgetpu.compiler import CompilerRecord, OperatorLine, parse_compiler_log, run_compiler

__all__ = [
    "Compiled",
    "CompilerRecord",
    "Executable",
    "GraphCheck",
    "OperatorCheck",
    "OperatorLine",
    "Unmapped",
    "check_operators",
    "inspect_compiled",
    "is_compiled",
    "parse_compiler_log",
    "run_compiler",
]
