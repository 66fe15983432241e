"""``python -m tests.fuzz [TARGET ...] [--seconds N]``: coverage-guided fuzzing of the targets (atheris).

``make fuzz`` installs atheris, which nothing else needs, and runs all of them. What is found is written to
``build/fuzz/TARGET/crash-*``; put it into ``tests/fuzz/found/TARGET/`` once it is understood, where the unit tests give
it to the target for ever.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def one(name: str, seconds: int, directory: Path) -> None:
    """Fuzz a target in this process; does not return when atheris ends it."""
    import atheris

    with atheris.instrument_imports(include=["casemate"]):
        from tests.fuzz import targets
    corpus = directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    argv = [
        sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=2048",
        "-verbosity=0", "-print_final_stats=1", f"-artifact_prefix={directory}/",
    ]  # fmt: skip
    atheris.Setup(argv, targets.TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    build = ROOT / "build" / "fuzz"
    if args.inside:
        one(args.target[0], args.seconds, build / args.target[0])
        return 0
    from tests.fuzz.targets import TARGETS  # above it would be imported without being watched

    found = 0
    for name in args.target or TARGETS:
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(args.seconds), "--inside"],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}, capture_output=True, text=True,
        )  # fmt: skip
        runs = next((line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line), "?")
        words = "nothing found" if done.returncode == 0 else "FOUND something"
        print(f"{name:<24} {runs:>10} runs in {time.monotonic() - begin:.0f} s: {words}", flush=True)
        if done.returncode:
            found += 1
            print(done.stderr[-3000:], flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
