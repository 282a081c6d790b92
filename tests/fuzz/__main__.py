"""Look for inputs that break a target, by coverage: `./test --fuzz=SECONDS [TARGET…]`.

The time is shared by the targets. What breaks one is written into the corpus, where the tests find
it until it is mended. What only led to more of the code stays in .venv/cache/fuzz, for next time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS

REPOSITORY = Path(__file__).parents[2]
CORPUS = Path(__file__).with_name("corpus")
CACHE = REPOSITORY / ".venv" / "cache" / "fuzz"
ONE = Path(__file__).with_name("one.py")
MEMORY = 1024  # MiB, of which Python and its libraries take 200
INPUT = 1 << 16  # bytes: the longest that is tried
HANG = 20  # seconds for one input


def fuzz(name: str, seconds: float) -> bool:
    """Fuzz one target; false if something broke it."""
    cache, corpus = CACHE / name, CORPUS / name
    for directory in (cache, corpus):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (cache / f"seed-{number}").write_bytes(seed)
    options = {
        "artifact_prefix": f"{corpus}/",
        "max_len": INPUT,
        "max_total_time": max(1, round(seconds)),
        "rss_limit_mb": MEMORY,
        "timeout": HANG,
        "verbosity": 0,
        "print_final_stats": 1,
    }
    words: list[str | Path] = [
        sys.executable,
        ONE,
        name,
        *(f"-{key}={value}" for key, value in options.items()),
    ]
    print(f"{name}:", flush=True)
    done = subprocess.run([*words, cache, corpus], cwd=REPOSITORY, check=False)
    if not any(corpus.iterdir()):
        corpus.rmdir()
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="./test --fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, metavar="N")
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="TARGET")
    given = parser.parse_args()
    names = given.targets or list(TARGETS)
    broken = [name for name in names if not fuzz(name, given.seconds / len(names))]
    print("broken: " + ", ".join(broken) if broken else "nothing was broken")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
