"""``python -m kinoscope <verb> …``."""

import sys

from kinoscope.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
