"""Getting a bundle onto a board or a phone, checking it there, and measuring it there.

>>> deploy("intents.edgelm", "pi@raspberrypi.local")
>>> runs = benchmark_on("intents.edgelm", "pi@raspberrypi.local", arguments=("--seconds", "10"))

A board is reached by the system's own ``ssh``, with the user's keys and configuration; a phone by ``adb``. Nothing needs to
be installed there for the copy itself but a POSIX shell, tar and sha256sum.
"""

from edgelm.deploy.address import Address, parse_address
from edgelm.deploy.deployment import Deployed, deploy
from edgelm.deploy.remote_benchmark import benchmark_on

__all__ = ["Address", "Deployed", "benchmark_on", "deploy", "parse_address"]
