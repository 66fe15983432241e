"""Mutants of the channel's protocol."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_MUX = "src/casemate/wire/mux.py"
_VIOLATIONS = ("tests/unit/test_mux.py::test_a_violation_of_the_guest_closes_the_channel",)

MUTANTS = (
    Mutant(
        "hang-up-of-the-same-round", "what was sent before a hang-up is read", "src/casemate/streams/socket_stream.py",
        "            if self._paused:\n                self._mask = 0\n                self._loop.unwatch(self._in)\n",
        "            self._mask = 0\n            self._loop.unwatch(self._in)\n",
        ("tests/contract/test_streams.py::test_room_that_comes_in_the_round_of_the_hang_up",),
    ),
    Mutant(
        "half-frame-waited-for", "limit: from the first byte of a frame or message to its last",
        "src/casemate/streams/channel.py",
        "            self._half.read(self.mux.cut, self.mux.frames)\n            self._pace()",
        "            self._pace()",
        ("tests/unit/test_half_frame.py::test_half_a_frame_is_a_violation_at_its_deadline",),
    ),
    Mutant(
        "half-frame-of-ours", "what we do not read is not late", "src/casemate/streams/channel.py",
        "                self._half.stop()\n", "                pass\n",
        ("tests/unit/test_half_frame.py::test_a_frame_that_waits_for_us_is_not_late",),
    ),
    Mutant(
        "half-frame-put-off", "limit: from the first byte of a frame or message to its last",
        "src/casemate/streams/half_frame.py",
        "elif not self._since or whole != self._whole:", "else:",
        ("tests/component/test_channel_floods.py::test_half_a_frame_has_a_deadline_and_is_a_violation",), slow=True,
    ),
    Mutant(
        "half-message-waited-for", "limit: from the first byte of a frame or message to its last",
        "src/casemate/streams/messages.py",
        "self._half.read(bool(self._buffer), self._whole)", "pass",
        ("tests/component/test_vchan_abuse.py::test_half_a_message_of_an_agent_has_a_deadline",), slow=True,
    ),
    Mutant(
        "mux-no-trailer", "a frame counts only once its trailer was seen", _MUX,
        "if view[end : end + TRAILER] != self._tag:", "if False:",
        ("tests/unit/test_mux.py::test_a_host_that_reconnects_in_the_middle_of_a_frame_delivers_nothing_of_it",
         *_VIOLATIONS),
    ),
    Mutant(
        "mux-no-window", "limit: bytes in flight of one stream", _MUX,
        "if stream.eof_in or len(payload) > stream.window or not payload:", "if stream.eof_in or not payload:",
        _VIOLATIONS,
    ),
    Mutant(
        "mux-data-after-end", "nothing comes after the end of a stream", _MUX,
        "if stream.eof_in or len(payload) > stream.window or not payload:",
        "if len(payload) > stream.window or not payload:", _VIOLATIONS,
    ),
    Mutant(
        "mux-grant-beyond-window", "limit: bytes in flight of one stream", _MUX,
        "if stream.credit + more > WINDOW:", "if False:", _VIOLATIONS,
    ),
    Mutant(
        "mux-streams-unlimited", "limit: streams of one end", _MUX,
        "if self._peer_opened >= MAX_STREAMS:", "if False:", _VIOLATIONS,
    ),
    Mutant(
        "mux-ids-again", "ids of streams are never used again", _MUX,
        "if number & 1 == (0 if self._host else 1) or number <= self._last_peer:",
        "if number & 1 == (0 if self._host else 1):", _VIOLATIONS,
    ),
    Mutant(
        "mux-stale-unlimited", "limit: bytes before the answer to a reset", _MUX,
        "if self._host and self._stale > MAX_STALE:", "if False:",
        ("tests/unit/test_mux.py::test_a_guest_that_never_answers_the_reset_but_sends_is_hung_up_on",),
    ),
    Mutant(
        "channel-reads-on", "a peer that does not read is not read from", "src/casemate/streams/channel.py",
        "elif self.mux.pending > MAX_OWED:", "elif False:",
        ("tests/contract/test_streams.py::test_a_guest_that_does_not_read_what_it_is_owed_is_not_read_from",),
    ),
    Mutant(
        "channel-holds-on", "limit: what all readers of a qube hold", "src/casemate/streams/channel.py",
        "return self._held < MAX_HELD and not self._paced", "return not self._paced",
        ("tests/contract/test_streams.py::test_what_all_readers_of_a_guest_hold_is_bounded",),
    ),
    Mutant(
        "channel-unpaced", "limit: frames that move no data", "src/casemate/streams/channel.py",
        "if self._closed or self._paced or not wait:", "if True:",
        ("tests/component/test_channel_floods.py::test_a_flood_that_goes_on_loses_its_channel",), slow=True,
    ),
    Mutant(
        "join-keeps-the-other", "law 4", "src/casemate/streams/join.py",
        "            self._other.abort()\n", "            pass\n",
        ("tests/contract/test_joins.py::test_a_killed_end_ends_the_other",), slow=True,
    ),
    Mutant(
        "join-hides-the-end", "law 4", "src/casemate/streams/join.py",
        "self.ended = True\n        self._other.eof()", "self.ended = True",
        ("tests/contract/test_joins.py::test_a_join_carries_both_directions_and_each_ends_for_itself",), slow=True,
    ),
    Mutant(
        "terminal-sees-everything", "D13", "src/casemate/wire/call_data.py",
        'VISIBLE = bytes(b if 0x20 <= b <= 0x7E or b in b"\\t\\n\\r\\b\\a" else ord("_") for b in range(256))',
        "VISIBLE = bytes(range(256))",
        ("tests/component/test_calls.py::test_output_on_a_terminal_is_harmless",),
    ),
)  # fmt: skip
