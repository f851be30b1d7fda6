"""A shim: ``python -m train`` is ``kinoscope train``."""

from kinoscope.cli import main

if __name__ == "__main__":
    import sys

    sys.exit(main(["train", *sys.argv[1:]]))
