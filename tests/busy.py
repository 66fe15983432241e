"""``python -m tests.busy [ROUNDS] [PYTEST WORDS…]``: run the suite on a busy machine, in random order.

Four processes a core do nothing but compute meanwhile, so that every test gets about a fifth of a core. A test that
fails here and passes on an idle machine takes for granted how far another process got: mend the test, or the product.
The seed of each round is printed; ``pytest --random-order-seed=SEED`` repeats its order.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time

LOAD_PER_CORE = 4
TIMEOUT = 1500
"""Seconds for one test: five times what it gets on an idle machine."""


def main(argv: list[str]) -> int:
    """The first status other than 0 of a round, 0 when all passed."""
    rounds = int(argv[0]) if argv else 3
    words = argv[1:] or ["tests"]
    count = LOAD_PER_CORE * (os.cpu_count() or 1)
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        for number in range(1, rounds + 1):
            seed = secrets.randbelow(1 << 30)
            begin = time.monotonic()
            print(f"round {number} of {rounds}: seed {seed}, beside {count} busy processes", flush=True)
            # Modules in random order, tests within each too: fixtures of a module are still set up once.
            pytest = [sys.executable, "-m", "pytest", "--random-order-bucket=module", f"--random-order-seed={seed}"]
            done = subprocess.run([*pytest, "--timeout", str(TIMEOUT), *words], check=False)
            print(f"round {number}: status {done.returncode} after {time.monotonic() - begin:.0f} s", flush=True)
            if done.returncode != 0:
                return done.returncode
    finally:
        for process in load:
            process.kill()
            process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
