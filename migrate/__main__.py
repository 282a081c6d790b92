"""``python -m pymigrate.migrate``: the same as the command ``pymigrate``."""

from pymigrate.migrate.cli import program

if __name__ == "__main__":
    program()
