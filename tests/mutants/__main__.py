"""``python -m tests.mutants [ID…] [--sample N]``: take protections out of a copy of the tree and see the tests fail."""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter

from tests.mutants import run
from tests.mutants.catalogue import ALL, by_id


def main(argv: list[str]) -> int:
    """0 when every mutant was killed, 1 when not, 2 for an id that there is not."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these")
    parser.add_argument("--sample", type=int, metavar="N", help="N of the fast ones, chosen at random")
    parser.add_argument("--list", action="store_true", help="show what there is")
    words = parser.parse_args(argv)
    known = by_id()
    unknown = [name for name in words.ids if name not in known]
    if unknown:
        print(f"no such mutant: {', '.join(unknown)}", file=sys.stderr)
        return 2
    chosen = [known[name] for name in words.ids] or list(ALL)
    if words.sample is not None:
        fast = [mutant for mutant in chosen if not mutant.slow]
        chosen = random.sample(fast, min(words.sample, len(fast)))
    if words.list:
        for mutant in chosen:
            print(f"{mutant.id:32} {mutant.protects:32} {mutant.file}")
        return 0
    verdicts = run.run(chosen, lambda line: print(line, flush=True))
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(Counter(verdicts.values()).items())))
    return 0 if set(verdicts.values()) <= {run.KILLED} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
