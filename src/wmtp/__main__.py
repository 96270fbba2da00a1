"""``python -m wmtp``."""

from wmtp.cli import main

main()
