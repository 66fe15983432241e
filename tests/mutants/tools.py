"""Mutants of the tools and of the library for scripts."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_BUNDLE = "src/casemate/cli/support_bundle.py"
_PLANTED = ("tests/unit/test_support_bundle.py::test_no_planted_secret_is_in_it",)

MUTANTS = (
    Mutant(
        "bundle-shows-foreign-words", "a support bundle has only words of Casemate's own code", _BUNDLE,
        "found[0] if _is_own(found[0]) else HIDDEN", "found[0]", _PLANTED,
    ),
    Mutant(
        "bundle-shows-a-console", "a support bundle shows nothing of a guest's console", _BUNDLE,
        "hidden = hidden or _CONSOLE in line", "hidden = False", _PLANTED,
    ),
    Mutant(
        "call-output-unbounded", "a qube cannot fill the memory of a script", "src/casemate/library/calls.py",
        "if sum(map(len, output.values())) > most:", "if False:",
        ("tests/unit/test_library.py::test_output_and_time_have_bounds",),
    ),
)  # fmt: skip
