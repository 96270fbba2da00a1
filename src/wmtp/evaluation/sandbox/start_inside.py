"""The first file that the isolated Python reads: finds the rest, and serves."""

import os
import socket
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from inside.fork_server import main  # type: ignore[import-not-found]

    sys.path.pop(0)
    main(socket.socket(fileno=int(sys.argv[1])))
