"""Mutants: for each protection a change that takes it out, and the tests that must fail with it.

::

    engine.py  host.py  link.py  qrexec.py  storage.py  store.py  streams.py        what there is, as plain data
         └────────┴────────┴───────┬──┴─────────┴──────────┴─────────┘
                              catalogue.py  all of them; which are stale
                                   │
    python -m tests.mutants ──▶ run.py ──▶ a copy of the tree ──▶ pytest -p tests.mutants.outcomes NAMED TESTS

A mutant is killed when a test that it names passes on the copy as it is and fails on the copy with the change. One that
survives shows a protection that somebody could take out with all tests passing. One is stale when the code has changed
so that its old text no longer stands there exactly once: adapt it to the new code.

To add one: append a ``Mutant`` to the module of its area and run ``python -m tests.mutants ID``. Name a test that is
fast (seconds) and needs no virtual machine; mark the mutant ``slow`` where there is none.
"""
