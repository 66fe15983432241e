"""Mutants of the manager page: what keeps other programs, other users and other web sites out of it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_FILE = "src/casemate/web/guard.py"
_HEAD = "tests/unit/test_web_guard.py::"
_PAGE = "tests/contract/test_web.py::"
_QUBE = "tests/contract/test_web_qube.py::"
_TABLE = "tests/contract/test_web_table.py::"
_CONSOLE = "tests/contract/test_web_console.py::"

MUTANTS = (
    Mutant(
        "page-any-host", "W2", _FILE, 'if found.get(b"host") != self._host:', "if False:",
        (f"{_HEAD}test_another_host_is_refused",),
    ),
    Mutant(
        "page-any-origin", "W3", _FILE, 'if b"origin" in found and found[b"origin"] != self._origin:', "if False:",
        (f"{_HEAD}test_another_origin_is_refused",),
    ),
    Mutant(
        "page-any-site", "W3", _FILE, "        self._check_site(method, path, found)\n", "",
        (f"{_HEAD}test_requests_of_other_pages_are_refused",),
    ),
    Mutant(
        "page-same-site", "W3", _FILE, 'if site == b"same-origin":', 'if site in (b"same-origin", b"same-site"):',
        (f"{_HEAD}test_requests_of_other_pages_are_refused",),
    ),
    Mutant(
        "page-in-a-frame", "W3", _FILE, ' and found.get(b"sec-fetch-dest") == b"document"', "",
        (f"{_HEAD}test_only_the_frame_may_be_opened_from_elsewhere_and_only_as_a_document",),
    ),
    Mutant(
        "page-no-token", "W1", _FILE, "if path not in self._public and not", "if False and not",
        (f"{_HEAD}test_without_the_token_nothing_is_answered",),
    ),
    Mutant(
        "page-token-compared-by-length", "W1", _FILE,
        'not hmac.compare_digest(found.get(b"authorization", b""), self._bearer)',
        'found.get(b"authorization", b"") != self._bearer',
        (f"{_HEAD}test_the_token_is_compared_in_constant_time",),
    ),
    Mutant(
        "page-no-custom-header", "W4", _FILE, 'if found.get(CUSTOM_HEADER) != b"1":', "if False:",
        (f"{_HEAD}test_a_change_is_a_post_with_our_header",),
    ),
    Mutant(
        "page-read-only-changes", "W7", _FILE, "        if self._read_only:\n", "        if False:\n",
        (f"{_HEAD}test_a_read_only_page_changes_nothing",),
    ),
    Mutant(
        "page-header-twice", "W2", _FILE, "if name in found and name in _SINGLE:", "if False:",
        (f"{_HEAD}test_a_header_that_decides_is_there_once",),
    ),
    Mutant(
        "page-no-rate", "W6", _FILE, "if not self._rate.take():", "if False:",
        (f"{_HEAD}test_a_flood_is_refused_before_it_is_looked_at",),
    ),
    Mutant(
        "page-refusal-without-headers", "W5", _FILE,
        'await marked({"type": "http.response.start", "status": refusal.status',
        'await send({"type": "http.response.start", "status": refusal.status',
        (f"{_PAGE}test_every_answer_has_the_headers_of_safety",),
    ),
    Mutant(
        "page-framed", "W5", _FILE, "; frame-ancestors 'none'", "",
        (f"{_PAGE}test_every_answer_has_the_headers_of_safety",),
    ),
    Mutant(
        "page-long-bodies", "W6", _FILE, "if size > MAX_BODY:", "if False:",
        (f"{_PAGE}test_long_bodies_and_heads_are_refused",),
    ),
    Mutant(
        "page-any-connections", "W6", "src/casemate/web/connections.py",
        "if len(self.connections) > MAX_CONNECTIONS:", "if False:",
        (f"{_PAGE}test_five_hundred_connections_are_bounded_and_go_away",), slow=True,
    ),
    Mutant(
        "page-silent-connections", "W6", "src/casemate/web/connections.py", "        self._watch(None)\n", "",
        (f"{_PAGE}test_five_hundred_connections_are_bounded_and_go_away",), slow=True,
    ),
    Mutant(
        "page-any-streams", "W6", "src/casemate/web/stream.py",
        'if self._open >= MAX_STREAMS:\n            raise', "if False:\n            raise",
        (f"{_PAGE}test_streams_are_bounded",),
    ),
    Mutant(
        "page-on-every-address", "W2", "src/casemate/web/server.py", 'found.bind(("127.0.0.1", 0))',
        'found.bind(("", 0))', (f"{_PAGE}test_the_page_listens_on_loopback_alone",),
    ),
    Mutant(
        "page-same-token", "W1", "src/casemate/web/server.py", "token = secrets.token_urlsafe(32)",
        'token = "a" * 43', (f"{_PAGE}test_another_process_has_another_token",),
    ),
    Mutant(
        "page-unescaped", "W8", "src/casemate/web/rendering.py", "autoescape=True", "autoescape=False",
        (f"{_PAGE}test_text_of_others_is_escaped",),
    ),
    Mutant(
        "page-text-that-hides", "W8", "src/casemate/web/rendering.py", ".format(who, printable(text, 2000))",
        ".format(who, text)", (f"{_PAGE}test_text_of_others_is_escaped",),
    ),
    Mutant(
        "page-rules-written-over", "W10", "src/casemate/web/qube/firewall.py",
        "if await rules_of(name) != known:", "if False:",
        (f"{_QUBE}test_wrong_input_is_named_and_changes_nothing",),
    ),
    Mutant(
        "page-other-rule-removed", "W10", "src/casemate/web/qube/firewall.py",
        "if at >= len(lines) or lines[at] != line:", "if at >= len(lines):",
        (f"{_QUBE}test_wrong_input_is_named_and_changes_nothing",),
    ),
    Mutant(
        "page-notes-written-over", "W10", "src/casemate/web/qube/features.py",
        'if await site.api.call("admin.vm.notes.Get", "", name) != fields["known"]:', "if False:",
        (f"{_QUBE}test_wrong_input_is_named_and_changes_nothing",),
    ),
    Mutant(
        "page-removes-what-is-used", "W10", "src/casemate/web/qube/lifecycle.py",
        "        if users:\n", "        if False:\n",
        (f"{_QUBE}test_wrong_input_is_named_and_changes_nothing",),
    ),
    Mutant(
        "page-removes-what-changed", "W10", "src/casemate/web/qube/lifecycle.py",
        'if found.row.state != fields["state"]:', "if False:",
        (f"{_QUBE}test_wrong_input_is_named_and_changes_nothing",),
    ),
    Mutant(
        "page-half-a-creation", "W10", "src/casemate/web/qube/lifecycle.py",
        '                await site.api.call("admin.vm.Remove", "", name)\n                raise\n',
        "                raise\n",
        (f"{_QUBE}test_a_creation_whose_network_is_refused_leaves_nothing",),
    ),
    Mutant(
        "page-half-a-rename", "W10", "src/casemate/client/renaming.py",
        "for step in reversed(back):", "for step in ():",
        (f"{_QUBE}test_a_rename_that_fails_is_undone",),
    ),
    Mutant(
        "page-console-raw", "W11", "src/casemate/web/qube/console.py", "self._harmless.pass_on(data)", "data",
        (f"{_CONSOLE}test_the_console_carries_what_is_harmless",),
    ),
    Mutant(
        "page-console-stays", "W11", "src/casemate/web/qube/console.py",
        "            self._open.pop(ident, None)\n            session.close()\n", "            pass\n",
        (f"{_CONSOLE}test_the_console_carries_what_is_harmless",),
    ),
    Mutant(
        "page-console-waits-for-ever", "W11", "src/casemate/web/qube/console.py",
        "asyncio.timeout(WRITE_SECONDS)", "asyncio.timeout(None)",
        (f"{_CONSOLE}test_neither_end_of_a_console_can_make_the_other_hold_much",), slow=True,
    ),
    Mutant(
        "page-any-consoles", "W11", "src/casemate/web/qube/console.py",
        "if len(self._open) + self._opening >= MAX_CONSOLES:", "if False:",
        (f"{_CONSOLE}test_consoles_are_bounded",),
    ),
    Mutant(
        "page-long-typing", "W11", "src/casemate/web/qube/console.py", "if len(data) > MAX_INPUT:", "if False:",
        (f"{_CONSOLE}test_the_console_carries_what_is_harmless",),
    ),
    Mutant(
        "page-all-at-once", "W6", "src/casemate/web/actions.py", "asyncio.Semaphore(AT_ONCE)",
        "asyncio.Semaphore(10**6)",
        (f"{_TABLE}test_many_are_started_a_few_at_a_time",),
    ),
    Mutant(
        "page-any-selection", "W6", "src/casemate/web/qubes_page.py",
        "if not 1 <= len(names) <= MAX_SELECTED:", "if not names:",
        (f"{_TABLE}test_a_wrong_selection_is_refused",),
    ),
    Mutant(
        "page-any-views", "W6", "src/casemate/web/saved_views.py", "if len(views) >= MAX_VIEWS:", "if False:",
        (f"{_TABLE}test_views_outlive_the_page_and_are_one_users",),
    ),
    Mutant(
        "page-log-follows-links", "W8", "src/casemate/web/qube/log.py", " | os.O_NOFOLLOW", "",
        (f"{_QUBE}test_what_a_log_says_is_printable_and_its_end",),
    ),
    Mutant(
        "page-log-raw", "W8", "src/casemate/web/qube/log.py", "printable(line, 2000)", "line",
        (f"{_QUBE}test_what_a_log_says_is_printable_and_its_end",),
    ),
    Mutant(
        "page-topics-forgotten", "W10", "src/casemate/web/live.py",
        "            self._oldest = max(self._oldest, self._topics.pop(first))\n",
        "            self._topics.pop(first)\n",
        (f"{_QUBE}test_topics_that_are_forgotten_mean_everything",),
    ),
    Mutant(
        "page-typing-lost", "W10", "src/casemate/web/static/refresh.js",
        "const mine = touched(old);", "const mine = false;",
        ("tests/contract/test_web_qube_browser.py::test_another_net_qube_and_what_others_set_meanwhile",), slow=True,
    ),
)  # fmt: skip
