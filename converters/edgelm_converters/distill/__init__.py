"""Distillation: a small or a damaged model learns to answer as its teacher does.

`distil` takes a teacher and a student as the user names them and writes a ``.keras`` file that `edgelm convert` takes;
`distil_spec` is the same between two specs, as a step of a chain.
"""

from __future__ import annotations

from edgelm_converters.distill.distillation import Distillation, distil, distil_spec
from edgelm_converters.distill.settings import Training

__all__ = ["Distillation", "Training", "distil", "distil_spec"]
