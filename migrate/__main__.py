"""``python -m pymigrate.migrate``: the same as the command ``pymigrate``."""

import sys

from pymigrate.migrate.cli import main

if __name__ == "__main__":
    sys.exit(main())
