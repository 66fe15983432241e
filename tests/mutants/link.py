"""Mutants of a qube's link, its database and the calls that it asks for."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_IDENTITY = ("tests/component/test_link_identity.py::test_a_link_keeps_neither_root_nor_a_group_of_the_daemon",)
_CONFINED = "tests/component/test_link_confined.py::"
_CONFINE = "src/casemate/link/confine.py"

MUTANTS = (
    Mutant(
        "link-keeps-root", "V2", _CONFINE,
        "os.setuid(uid)", "pass", _IDENTITY, root=True,
    ),
    Mutant(
        "link-keeps-group", "V2", _CONFINE,
        "os.setgid(gid)", "pass", _IDENTITY, root=True,
    ),
    Mutant(
        "link-keeps-supplementary-groups", "V2", _CONFINE,
        "os.setgroups([])", "pass", _IDENTITY, root=True,
    ),
    Mutant(
        "link-unconfined", "a hijacked link gets little", "src/casemate/link/__main__.py",
        'held = confine(description["directory"])', "held = 0", _IDENTITY, root=True,
    ),
    Mutant(
        "link-opens-files", "V9", _CONFINE,
        "held = landlock.restrict(_files(directory))", "held = landlock.version()",
        (f"{_CONFINED}test_a_link_opens_no_file_but_its_sockets",),
    ),
    Mutant(
        "hanging-guest-waited-for", "limit: time that a qube's agent does not answer", "src/casemate/link/requests.py",
        "                stream.abort()\n                caller.abort()\n", "",
        ("tests/component/test_silent_guest.py::test_a_call_that_brought_nothing_ends_and_others_wait",), slow=True,
    ),
    Mutant(
        "brought-input-is-lost", "a call that has brought a guest something waits for it",
        "src/casemate/link/requests.py",
        " and stream.sent <= _NOTHING:", ":",
        ("tests/component/test_silent_guest.py::test_a_call_that_brought_nothing_ends_and_others_wait",), slow=True,
    ),
    Mutant(
        "end-of-session-is-life", "only an answer is a sign of life", "src/casemate/link/liveness.py",
        "if why != GIVEN_UP:", "if False:",
        ("tests/component/test_silent_guest.py::test_a_session_that_ends_is_no_sign_of_life",), slow=True,
    ),
    Mutant(
        "link-gains-privileges", "a hijacked link gets little", _CONFINE,
        "_prctl(libc, _PR_SET_NO_NEW_PRIVS, 1, 0)", "pass", (f"{_CONFINED}test_a_link_can_have_what_it_needs",),
    ),
    Mutant(
        "link-has-the-network", "a hijacked link gets little", _CONFINE,
        "(_EQUAL, 1, 0, _AF_UNIX)", "(_EQUAL, 1, 1, _AF_UNIX)", (f"{_CONFINED}test_a_link_cannot_have",),
    ),
    Mutant(
        "link-starts-programs", "a hijacked link gets little", _CONFINE,
        "    59, 322, ", "    ", (f"{_CONFINED}test_a_link_cannot_have",),
    ),
    Mutant(
        "link-starts-processes", "a hijacked link gets little", _CONFINE,
        "    56, 57, 58, 435, ", "    ", (f"{_CONFINED}test_a_link_cannot_have",),
    ),
    Mutant(
        "link-has-many-files", "a hijacked link gets little", _CONFINE,
        "resource.setrlimit(what, (limit, limit))", "pass", (f"{_CONFINED}test_a_link_can_have_what_it_needs",),
    ),
    Mutant(
        "link-open-sockets", "sockets of a link are its user's alone", "src/casemate/link/link.py",
        'listen(self._path("qubesdb.sock"), 0o600)', 'listen(self._path("qubesdb.sock"), 0o666)', _IDENTITY, root=True,
    ),
    Mutant(
        "link-log-uncut", "limit: lines that a link logs", "src/casemate/link/log.py",
        "if self._lines <= LOG_LINES_PER_SECOND:", "if True:",
        ("tests/component/test_security_calls.py::test_lesson_L16_a_flood_of_complaints_is_cut",),
    ),
    Mutant(
        "link-log-uncounted", "limit: lines that a link logs", "src/casemate/link/log.py",
        "self._second, self._lines = now, 0", "self._second = now",
        ("tests/unit/test_link_log.py::test_a_flood_is_cut_and_counted",),
    ),
    Mutant(
        "link-log-unbounded", "limit: a link's log", "src/casemate/link/log.py",
        "if self._size() + len(line) > LOG_BYTES:", "if False:",
        ("tests/unit/test_link_log.py::test_a_full_log_begins_anew_and_has_the_newest",),
    ),
    Mutant(
        "link-log-raw", "what a qube says is printable in logs", "src/casemate/link/log.py",
        "self._write(printable(text))", "self._write(text)",
        ("tests/unit/test_link_log.py::test_a_line_is_one_line_of_printable_text",),
    ),
    Mutant(
        "data-before-decision", "nothing is taken for a call that is not decided", "src/casemate/link/guest_calls.py",
        "if not self._decided:\n            self._stream.abort()\n            self._close()", "pass",
        ("tests/component/test_security_calls.py"
         "::test_what_a_qube_sends_before_the_broker_has_answered_ends_its_call",), slow=True,
    ),
    Mutant(
        "calls-unlimited", "limit: calls that a qube asks for", "src/casemate/link/guest_calls.py",
        "if self._tokens < 1:\n            return False", "",
        ("tests/component/test_call_reports.py::test_a_qube_that_asks_too_often",),
    ),
    Mutant(
        "violations-forgiven", "limit: violations of the protocol", "src/casemate/link/link.py",
        "if self.violations >= MAX_VIOLATIONS:", "if False:",
        ("tests/component/test_channel.py::test_hostile_bytes_close_the_channel_until_a_limit",), slow=True,
    ),
    Mutant(
        "violations-uncounted", "limit: violations of the protocol", "src/casemate/link/link.py",
        "self.violations += 1", "self.violations = 1",
        ("tests/component/test_channel_floods.py::test_violations_are_counted_once_each_and_never_forgotten",),
    ),
    Mutant(
        "ready-again", "an agent says once a session what it is", "src/casemate/link/link.py",
        "elif kind == READY and self.agent is None and", "elif kind == READY and",
        ("tests/component/test_channel_floods.py::test_ready_is_said_once_a_session",), slow=True,
    ),
    Mutant(
        "console-unbounded", "V7", "src/casemate/link/console.py",
        "self._tail = (self._tail + data)[-CONSOLE_BYTES:]", "self._tail = self._tail + data",
        ("tests/unit/test_console.py::test_a_guest_that_floods_a_terminal_that_nobody_reads",),
    ),
    Mutant(
        "console-user-unbounded", "V7", "src/casemate/link/console.py",
        "self._to_user = (self._to_user + data)[-CONSOLE_BYTES:]", "self._to_user = self._to_user + data",
        ("tests/unit/test_console.py::test_a_guest_that_floods_a_terminal_that_nobody_reads",),
    ),
    Mutant(
        "guest-writes-anywhere", "a qube never changes its own settings", "src/casemate/qdb/tree.py",
        'return path.startswith(GUEST_SUBTREES) or (path in GUEST_SIGNALS and value == b"")', "return True",
        ("tests/unit/test_qdb.py::test_lesson_L25_a_guest_cannot_write_what_is_the_hosts",),
    ),
    Mutant(
        "database-unbounded", "limit: what a qube writes to its database", "src/casemate/qdb/tree.py",
        "if size > 0 and self.size + size > self.max_size:", "if False:",
        ("tests/unit/test_qdb.py::test_tree_is_bounded_apart_for_host_and_guest",),
    ),
    Mutant(
        "database-keys-unbounded", "limit: entries that a qube has written", "src/casemate/qdb/tree.py",
        "if keys > 0 and self.keys + keys > self.max_keys:", "if False:",
        ("tests/unit/test_qdb.py::test_tree_is_bounded_apart_for_host_and_guest",),
    ),
    Mutant(
        "database-rate-unlimited", "limit: writes of a qube to its database", "src/casemate/qdb/mirror.py",
        "if self._tokens >= 1 and guest_may_write(path, value):", "if guest_may_write(path, value):",
        ("tests/unit/test_qdb.py::test_a_guest_writes_at_a_bounded_rate",),
    ),
    Mutant(
        "database-violations-forgiven", "limit: refused writes of a qube", "src/casemate/qdb/mirror.py",
        "if self._refused > MAX_REFUSED:", "if False:",
        ("tests/unit/test_qdb.py::test_lesson_L24_a_guest_that_breaks_the_protocol_is_cut_off",
         "tests/unit/test_qdb.py::test_a_guest_writes_at_a_bounded_rate"),
    ),
)  # fmt: skip
