"""``python -m ooc``: the same as the command ``ooc``."""

import sys

from ooc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
