"""``python -m wmtp.audit FOLDER``: the process that ``apart.py`` starts."""

import sys
from pathlib import Path

from wmtp.audit.apart import main

if __name__ == "__main__":
    main(Path(sys.argv[1]))
