"""Mutants of the tools and of the library for scripts."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_BUNDLE = "src/casemate/cli/support_bundle.py"
_PLANTED = ("tests/unit/test_support_bundle.py::test_no_planted_secret_is_in_it",)

_PARANOID = "tests/component/test_paranoid_restore.py::"

MUTANTS = (
    Mutant(
        "restore-changes-others", "B3", "src/casemate/client/new_qubes.py",
        "if not (method.startswith(_CREATES) and dest == ADMIN):", "if False:",
        (f"{_PARANOID}test_a_restore_changes_only_what_it_has_made",),
    ),
    Mutant(
        "reader-may-call", "B1", "src/casemate/data/policy/10-paranoid-restore.policy",
        "*  *  @tag:backup-restore-mgmt  *  deny notify=no", "*  *  @tag:backup-restore-mgmt  *  allow",
        (f"{_PARANOID}test_the_policy_refuses_every_call_of_the_disposable",),
    ),
    Mutant(
        "reader-has-a-network", "B1", "src/casemate/client/paranoid.py",
        'for key in ("netvm", "default_dispvm"):', 'for key in ("default_dispvm",):',
        (f"{_PARANOID}test_the_disposable_is_shut_in_before_it_starts",),
    ),
    Mutant(
        "reader-believed-whole", "B2", "src/casemate/client/paranoid.py",
        'if verdict.state == "whole" and missing:', "if False:",
        (f"{_PARANOID}test_a_qube_is_not_whole_because_the_disposable_says_so",),
    ),
    Mutant(
        "reader-writes-outside", "B2", "src/casemate/client/paranoid.py",
        "if self._sink is None or place < self._at or place + len(data) > self._size:", "if self._sink is None:",
        (f"{_PARANOID}test_what_does_not_belong_there_ends_the_reading",),
    ),
    Mutant(
        "reader-frames-unbounded", "B2", "src/casemate/backup/paranoid/frames.py",
        "if size > MOST[kind]:  # before any of it is read", "if False:",
        (f"{_PARANOID}test_a_length_is_judged_before_it_is_read",),
    ),
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
