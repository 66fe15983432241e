"""Mutants of the store: its laws."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_LOCK = "src/casemate/store/lock.py"
_DATA = "src/casemate/store/data_file.py"
_STORE = "src/casemate/store/store.py"
_TESTS = "tests/unit/test_store.py::"
_LAW5 = "tests/component/laws/test_law5_no_child_needs_its_callers_lock.py::"
_LAW6 = "tests/component/laws/test_law6_portable_locks.py::"
_CALLS = (f"{_TESTS}test_order_of_system_calls",)

MUTANTS = (
    Mutant(
        "dead-database-is-none", "law 2", "src/casemate/qdb/client.py",
        'self.close()\n            raise DisconnectedError("The database is gone")\n',
        'data = qdb.record(qdb.NOENT, "/x")\n',
        ("tests/unit/test_qdb.py::test_a_database_that_is_gone_is_an_error_at_once",),
    ),
    Mutant(
        "old-answers-stay", "law 2", "src/casemate/qdb/client.py",
        "self._reader = qdb.RecordReader(strict=True)\n        self._events: deque[str] = deque()",
        'self._reader = getattr(self, "_reader", qdb.RecordReader(strict=True))\n'
        '        self._events: deque[str] = getattr(self, "_events", deque())',
        ("tests/unit/test_qdb.py::test_a_new_connection_to_a_database_has_nothing_of_the_old",),
    ),
    Mutant(
        "lock-of-the-data-file", "law 3", _LOCK,
        'self.lock_file = file.with_name(file.name + ".lock")', "self.lock_file = file",
        (f"{_TESTS}test_two_saves_under_one_lock_are_not_interrupted",
         "tests/component/laws/test_law3_held_across_saves.py::test_a_whole_run_under_one_lock_by_the_public_api"),
    ),
    Mutant(
        "looking-takes-the-lock", "law 5", _STORE,
        "cache = self._cache\n        try:\n            if cache is not None and cache[0] == self._file.signature():\n"
        "                return cache[1]\n            return self._load()[1]",
        "cache = self._cache\n        try:\n            with self._lock.shared(self.timeout):\n"
        "                return self._load()[1]",
        (f"{_LAW5}test_a_child_that_only_looks_needs_no_lock",),
    ),
    Mutant(
        "order-of-locks-unasserted", "law 5", "src/casemate/store/order.py",
        "if held and (rank, name) <= held[-1]:", "if False:", (f"{_LAW5}test_the_order_is_asserted",), slow=True,
    ),
    Mutant(
        "everybody-shares", "law 6", "src/casemate/store/lock_posix.py",
        "True: fcntl.LOCK_EX | fcntl.LOCK_NB", "True: fcntl.LOCK_SH | fcntl.LOCK_NB",
        (f"{_LAW6}test_t06_reader_and_writer_wait_for_each_other",),
    ),
    Mutant(
        "readers-alone", "law 6", "src/casemate/store/lock_posix.py",
        "False: fcntl.LOCK_SH | fcntl.LOCK_NB", "False: fcntl.LOCK_EX | fcntl.LOCK_NB",
        (f"{_LAW6}test_t05_readers_are_in_together",), slow=True,
    ),
    Mutant(
        "child-keeps-the-lock", "law 6", _LOCK,
        "        lock.after_fork()\n", "        pass\n", (f"{_LAW6}test_t11_a_forked_child_does_not_keep_the_lock",),
    ),
    Mutant(
        "removed-lock-is-a-lock", "law 6", "src/casemate/store/lock_posix.py",
        "return os.fstat(fd).st_nlink == 0", "return False",
        (f"{_LAW6}test_a_lock_file_that_goes_away_is_made_again_and_locks",),
    ),
    Mutant(
        "no-timeout", "law 6", _LOCK,
        "if left <= 0:\n                raise LockTimeoutError(self._message(self._holders(files), timeout))", "",
        (f"{_TESTS}test_a_timeout_names_the_holder",), slow=True,
    ),
    Mutant(
        "lock-is-reentrant", "law 6", _LOCK,
        "if thread in lock._used:", "if False:",
        (f"{_TESTS}test_threads_exclude_each_other_and_nothing_is_reentrant",),
    ),
    Mutant(
        "locks-of-other-machines", "law 6", "src/casemate/store/file_system.py",
        'if os.environ.get(OVERRIDE, "") in ("", "0"):', "if False:",
        ("tests/unit/test_store_file_system.py::test_a_store_of_other_machines_is_refused_before_anything_is_made",),
    ),
    Mutant("file-unsynced", "a save survives a power failure", _DATA, "            files.sync(fd)\n", "", _CALLS),
    Mutant(
        "directory-unsynced", "a save survives a power failure", _DATA,
        "self._files.sync_directory(self.path.parent)", "pass", _CALLS,
    ),
    Mutant(
        "previous-lost", "the file before the last save is kept", _DATA,
        "files.rename(previous, self.history.previous)", "pass",
        (f"{_TESTS}test_mode_and_previous_file_are_kept",),
    ),
    Mutant(
        "foreign-change-overwritten", "a change that ignored the lock is not overwritten", _DATA,
        "if self.find_signature() != expected:", "if False:",
        (f"{_TESTS}test_a_file_changed_behind_our_back_is_not_overwritten",),
    ),
    Mutant(
        "invariants-unchecked", "what breaks an invariant is not saved", _STORE,
        "invariants.check(self.system, self.system.changes[self._checked :])", "pass",
        (f"{_TESTS}test_a_failed_block_leaves_nothing",),
    ),
    Mutant(
        "group-commit-unchecked", "what breaks an invariant is not saved", _STORE,
        "invariants.check(trial, trial.changes)", "pass",
        ("tests/component/test_store_durability.py::test_group_commit_keeps_every_change_and_every_refusal",),
    ),
    Mutant(
        "missing-file-made-anew", "a missing file is not made anew over a history", _STORE,
        "if self.history.previous.exists():", "if False:", (f"{_TESTS}test_first_use_makes_an_initial_system",),
    ),
    Mutant(
        "snapshot-changes", "a snapshot refuses changes", _STORE,
        "        snapshot.frozen = True\n", "",
        (f"{_TESTS}test_a_snapshot_is_cached_until_the_file_changes",),
    ),
)  # fmt: skip
