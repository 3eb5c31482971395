"""Entry point of `python -m semair.cli`."""

from . import main

main()
