"""``python -m edgelm``: the same as the command ``edgelm``."""

from edgelm.cli import main

main()
