"""Mutants of the manager page's pages about the whole host: what keeps them bounded, true and plain text."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_WEB = "src/casemate/web/"
_TESTS = "tests/contract/test_web_host.py::"

MUTANTS = (
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
)  # fmt: skip
