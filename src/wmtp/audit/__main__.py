"""``python -m wmtp.audit FOLDER``: the process that ``apart.py`` starts."""

import sys
from pathlib import Path

from wmtp.audit.apart import main

main(Path(sys.argv[1]))
