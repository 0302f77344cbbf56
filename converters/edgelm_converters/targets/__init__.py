"""What a conversion is for: a GPU, an NPU, an Edge TPU, a runtime, or a device by its profile's name.

>>> find_target("gpu").recipes
('fp32', 'fp16')

A target chooses formats, recipe and lengths, refuses what contradicts it, and has the written file looked at.
"""

from edgelm_converters.targets.aim import Aim, aim_at, aim_note, refuse_model
from edgelm_converters.targets.checks import check_file
from edgelm_converters.targets.table import DEFAULT_RECIPE, TARGETS, Target, default_recipe, find_target

__all__ = [
    "DEFAULT_RECIPE",
    "TARGETS",
    "Aim",
    "Target",
    "aim_at",
    "aim_note",
    "check_file",
    "default_recipe",
    "find_target",
    "refuse_model",
]
