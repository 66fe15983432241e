"""Mutants of the manager page's pages about the whole host: what keeps them bounded, true and plain text."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_WEB = "src/casemate/web/"
_ENGINE = "src/casemate/engine/"
_TESTS = "tests/contract/test_web_host.py::"
_MANY = "tests/contract/test_web_many.py::"
_POLICY = "tests/contract/test_web_policy.py::"

_BUILDS = "tests/contract/test_web_builds.py::"
_BACKUPS = "tests/contract/test_web_backups.py::"
_DEVICES = "tests/contract/test_web_devices.py::"

MUTANTS = (
    Mutant(
        "page-device-unmarked", "W8", f"{_WEB}templates/devices.html",
        '|said("The device" if device.of_host else "The qube " ~ device.backend) }}', "|safe }}",
        (f"{_DEVICES}test_what_a_device_or_a_qube_says_is_plain_marked_text",),
    ),
    Mutant(
        "page-device-of-another-qube", "W8", f"{_WEB}templates/devices.html",
        ' <span class="mark">said by {{ device.backend }}</span>', "",
        (f"{_DEVICES}test_what_a_device_or_a_qube_says_is_plain_marked_text",),
    ),
    Mutant(
        "page-waits-for-a-silent-qube", "W6", f"{_WEB}devices_page.py", "asyncio.timeout(QUBE_SECONDS)",
        "asyncio.timeout(None)",
        (f"{_DEVICES}test_a_qube_that_does_not_answer_holds_nothing_up",), slow=True,
    ),
    Mutant(
        "page-devices-with-buttons", "W7", f"{_WEB}templates/devices.html",
        "{% if not read_only %}<td>{% if device.of_host %}", "{% if True %}<td>{% if device.of_host %}",
        (f"{_DEVICES}test_a_read_only_page_has_no_buttons_and_gives_nothing_away",),
    ),
    Mutant(
        "devices-of-qubes-unseen", "a list has what its caller may see", "src/casemate/api/methods/devices.py",
        "source == ADMIN or sees(qube)", "True",
        ("tests/component/test_api_from_qubes.py::test_who_has_devices_is_told_of_qubes_that_may_be_seen",),
    ),
    Mutant(
        "page-log-without-end", "W6", f"{_WEB}event_log.py", "deque(maxlen=KEPT_EVENTS)", "deque()",
        (f"{_TESTS}test_the_log_is_bounded_and_a_stream_that_did_not_ask_is_left_alone",),
    ),
    Mutant(
        "page-topics-for-all", "W6", f"{_WEB}live.py", "not topics.isdisjoint(self.topics)", "bool(self.topics)",
        (f"{_TESTS}test_the_log_is_bounded_and_a_stream_that_did_not_ask_is_left_alone",),
    ),
    Mutant(
        "page-event-unmarked", "W8", f"{_WEB}templates/events.html", "{{ one.details|said }}", "{{ one.details|safe }}",
        (f"{_TESTS}test_text_in_events_is_escaped_and_marked",),
    ),
    Mutant(
        "page-network-of-yesterday", "what is shown is true", f"{_WEB}network_page.py",
        "            self._at = 0.0\n", "",
        (f"{_TESTS}test_the_picture_is_not_of_yesterday",),
    ),
    Mutant(
        "page-picture-without-end", "W6", f"{_WEB}network_picture.py", "if len(found) <= MOST_BOXES:", "if True:",
        (f"{_TESTS}test_a_picture_of_thousands_stays_small",),
    ),
    Mutant(
        "page-calls-without-end", "W6", f"{_WEB}call_trace.py", "while len(self._calls) > KEPT_CALLS:", "while False:",
        (f"{_POLICY}test_calls_are_bounded",),
    ),
    Mutant(
        "page-calls-watched-for-nobody", "what is not looked at costs nothing", f"{_WEB}call_trace.py",
        "                self._task.cancel()\n", "                pass\n",
        (f"{_POLICY}test_calls_are_followed_while_somebody_looks",), slow=True,
    ),
    Mutant(
        "page-call-unmarked", "W8", f"{_WEB}templates/calls.html", "{{ call.target|said }}", "{{ call.target|safe }}",
        (f"{_POLICY}test_calls_are_followed_while_somebody_looks",),
    ),
    Mutant(
        "page-policy-overwrites", "W10", f"{_WEB}policy_page.py",
        'fields.get("token", ""), ascii_text', '"any", ascii_text',
        (f"{_POLICY}test_a_file_is_written_checked_changed_and_removed",),
    ),
    Mutant(
        "policy-check-writes-nothing", "a check changes nothing", "src/casemate/api/methods/policy.py",
        "    return await asyncio.to_thread(_wrong, context, _path(context, kind, arg), payload.encode",
        "    replace_file(_path(context, kind, arg), payload.encode())\n"
        "    return await asyncio.to_thread(_wrong, context, _path(context, kind, arg), payload.encode",
        (f"{_POLICY}test_a_check_says_what_replace_would_and_changes_nothing",),
    ),
    Mutant(
        "build-log-without-end", "a log is bounded", f"{_ENGINE}template_builds.py", "deque(maxlen=KEPT_LINES)",
        "deque()",
        (f"{_BUILDS}test_a_log_is_bounded_and_plain_text",), slow=True,
    ),
    Mutant(
        "build-line-without-end", "a log is bounded", f"{_ENGINE}template_builds.py", "printable(text, MAX_LINE)",
        "printable(text, 10**9)",
        (f"{_BUILDS}test_a_log_is_bounded_and_plain_text",), slow=True,
    ),
    Mutant(
        "page-build-log-unescaped", "W8", f"{_WEB}templates/builds.html", "{{ line|printable }}", "{{ line|safe }}",
        (f"{_BUILDS}test_a_log_is_bounded_and_plain_text",), slow=True,
    ),
    Mutant(
        "build-goes-back", "progress is what has ended", f"{_ENGINE}template_builds.py",
        "max(self.step, STEPS.index(step) + 1)", "STEPS.index(step) + 1",
        (f"{_BUILDS}test_the_log_and_the_steps_are_those_that_were_reported",), slow=True,
    ),
    Mutant(
        "build-cancelled-too-late", "W10", f"{_ENGINE}template_builds.py", "        if build.lasts:\n",
        "        if False:\n",
        (f"{_BUILDS}test_a_build_is_cancelled_until_the_template_is_being_made",), slow=True,
    ),
    Mutant(
        "builds-without-end", "builds are bounded", f"{_ENGINE}template_builds.py",
        "if len(self._running) >= MAX_BUILDS:", "if False:",
        (f"{_BUILDS}test_builds_are_bounded",), slow=True,
    ),
    Mutant(
        "page-forgets-a-lost-build", "what is shown is true", f"{_WEB}templates_page.py",
        "                self._lost[name] = why\n", "                pass\n",
        (f"{_BUILDS}test_a_build_that_ends_with_the_daemon_is_told",), slow=True,
    ),
    Mutant(
        "page-takes-a-typed-passphrase", "W12", f"{_WEB}backups_page.py",
        'await form(request, "qubes", "conflict")', "await form(request)",
        (f"{_BACKUPS}test_wrong_input_is_named",),
    ),
    Mutant(
        "page-option-for-a-tool", "a form is no command line", f"{_WEB}backups_page.py",
        "str(qube_name(word)) for word", "word for word",
        (f"{_BACKUPS}test_wrong_input_is_named",),
    ),
    Mutant(
        "page-whole-without-a-report", "a verdict is the tool's", f"{_WEB}backup_tools.py",
        'return not self.why and bool(self.report.get("whole"))', "return not self.why",
        (f"{_BACKUPS}test_a_verdict_for_each_qube",),
    ),
    Mutant(
        "page-restores-twice", "W10", f"{_WEB}backup_tools.py", "        if profile in self._tasks:\n",
        "        if False:\n",
        (f"{_BACKUPS}test_a_cancelled_restore_leaves_nothing",), slow=True,
    ),
    Mutant(
        "page-kills-a-restore", "W10", f"{_WEB}backup_tools.py", "process.send_signal(signal.SIGINT)",
        "process.kill()",
        (f"{_BACKUPS}test_a_cancelled_restore_leaves_nothing",), slow=True,
    ),
    Mutant(
        "page-verdict-unescaped", "W8", f"{_WEB}templates/backups_list.html",
        '<td class="wide">{{ one.why|printable }}</td></tr>', '<td class="wide">{{ one.why|safe }}</td></tr>',
        (f"{_BACKUPS}test_text_of_a_backup_is_plain_text",),
    ),
    Mutant(
        "page-shows-a-passphrase", "W12", f"{_WEB}backups_page.py",
        '"in the profile" if found.passphrase_text', "found.passphrase_text if found.passphrase_text",
        (f"{_MANY}test_backups_show_profiles_schedules_and_what_is_wrong",),
    ),
    Mutant(
        "page-switch-stops-at-a-refusal", "W10", f"{_WEB}templates_page.py",
        '                refused.append(f"{name}: {error}")\n',
        '                refused.append(f"{name}: {error}")\n                break\n',
        (f"{_MANY}test_several_qubes_are_switched_and_a_refusal_holds_no_other_up",),
    ),
    Mutant(
        "page-half-made-net-qube", "W10", f"{_WEB}first_run.py",
        "        if why:\n", "        if False:\n",
        (f"{_MANY}test_a_net_qube_that_cannot_be_is_not_half_made",),
    ),
    Mutant(
        "page-tells-before-it-knows", "what is shown is true", f"{_WEB}first_run.py",
        "site.live.settled.append(self._look)", "site.live.listeners.append(lambda _event: self._look())",
        (f"{_MANY}test_a_step_is_told_when_the_rows_have_it",), slow=True,
    ),
    Mutant(
        "page-any-long-calls", "W6", f"{_WEB}long_calls.py", "if len(self._tasks) >= MAX_LONG_CALLS:", "if False:",
        (f"{_MANY}test_long_calls_are_bounded",),
    ),
    Mutant(
        "page-stale-rows", "what is shown is true", f"{_WEB}live.py", "                self._dirty.add(name)\n", "",
        ("tests/contract/test_web_storm.py::test_what_is_shown_after_a_storm_is_what_there_is",), slow=True,
    ),
    Mutant(
        "page-wakes-for-nothing", "what is not looked at costs nothing", f"{_WEB}server.py",
        "await QuietServer(config)", "await uvicorn.Server(config)",
        (f"{_TESTS}test_a_page_that_nobody_looks_at_sleeps",), slow=True,
    ),
    Mutant(
        "page-refusal-forgotten", "a refusal is shown", f"{_WEB}call_trace.py",
        'known.refused and step.get("phase") == "ended"', "False",
        (f"{_POLICY}test_calls_are_followed_while_somebody_looks",),
    ),
)  # fmt: skip
