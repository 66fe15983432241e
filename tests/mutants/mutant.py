"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One protection, the change that takes it out, and who must notice."""

    id: str
    """Unique among all mutants, as the command line takes it."""
    protects: str
    """Where the protection is declared: a row of docs/explanation/security.md (``V2``), a law of
    docs/explanation/store.md (``law 3``), a step of a start (``LinkStep.down``), or in words what it is."""
    file: str
    """Path below the root of the tree."""
    old: str
    """Text that occurs exactly once in the file."""
    new: str
    """What stands there instead."""
    tests: tuple[str, ...]
    """Node ids of pytest. Killed when any of these tests fails."""
    slow: bool = False
    """The named tests take more than about five seconds: not part of a sample."""
    root: bool = False
    """The named tests are skipped for anybody but root."""
