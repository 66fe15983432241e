"""What each command does to a qube in each state: one declaration that code, reference page and tests read.

::

    outcome(COMMAND, STATE) ──▶ DOES     it is carried out
                                WAITS    first for what is under way: a start or a stop, each of which has an end
                                ALREADY  nothing is left to do; a success
                                REFUSES  an error of the class and with the words that stand here

A command asks the table under the qube's operation lock wherever it takes that lock, so that a start or stop under way
has ended by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from casemate.host.hypervisor import PowerState
from casemate.wire.errors import (
    CasemateError,
    NotHaltedError,
    NotImplementedHereError,
    NotPausedError,
    NotRunningError,
    NotStartedError,
    PropertyValueError,
    QubeError,
)


class Command(StrEnum):
    """What can be asked of a qube, by the word that the reference page shows."""

    START = "start"
    RUN = "run (a call, with the start that it may need)"
    SHUTDOWN = "shutdown"
    KILL = "kill"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    SUSPEND = "suspend, resume"
    CONSOLE = "console"
    REMOVE = "remove"
    RENAME = "rename"
    COPY = "clone (of the source)"
    RESIZE = "resize a volume"
    REPLACE = "clear, import, revert or replace a volume"
    CHANGE = "change a property that a machine is built on"
    DEVICE = "attach or detach a device"


class Way(StrEnum):
    """How a command ends."""

    DOES = "does it"
    WAITS = "waits, then does it"
    ALREADY = "nothing to do"
    REFUSES = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``words`` follow the qube's name in the error of a refusal; with the others they are a remark for people."""

    way: Way
    words: str = ""
    error: type[CasemateError] = QubeError


STATES = tuple(state for state in PowerState if state is not PowerState.NA)
"""The states that a qube of this host can be in, in the order of the page."""

IS = {
    PowerState.HALTED: "is halted",
    PowerState.TRANSIENT: "is starting",
    PowerState.RUNNING: "is running",
    PowerState.PAUSED: "is paused",
    PowerState.SUSPENDED: "is asleep",
    PowerState.HALTING: "is shutting down",
    PowerState.DYING: "is ending",
    PowerState.CRASHED: "has crashed",
}
"""Each state in words."""

_DOES, _WAITS, _ALREADY = Outcome(Way.DOES), Outcome(Way.WAITS), Outcome(Way.ALREADY)


def _refuses(error: type[CasemateError], words: str = "") -> Outcome:
    return Outcome(Way.REFUSES, words, error)


def _row(rest: Outcome, **known: Outcome) -> Mapping[PowerState, Outcome]:
    """The outcome of each state; ``rest`` for those that are not named. A refusal without words says the state."""
    found = {state: known.pop(state.name, rest) for state in STATES}
    assert not known, known
    return {
        state: Outcome(one.way, one.words or IS[state], one.error) if one.way is Way.REFUSES else one
        for state, one in found.items()
    }


_UNPAUSE = "is paused, so it does not answer: qvm-unpause it"
_FROZEN = "is paused, so it cannot shut down: unpause it, or kill it"
_ASLEEP = "is asleep, so it does not answer: wake it, or kill it"
_GOES_DOWN = Outcome(Way.WAITS, "until it has halted, and starts it again then")
_NOT_STARTED = _refuses(NotStartedError, "is not started")

TABLE: Mapping[Command, Mapping[PowerState, Outcome]] = {
    Command.START: _row(
        _GOES_DOWN, HALTED=_DOES, TRANSIENT=Outcome(Way.WAITS, "for the start under way"), RUNNING=_ALREADY,
        PAUSED=_refuses(NotHaltedError, _UNPAUSE), SUSPENDED=_refuses(NotHaltedError, _ASLEEP),
    ),
    Command.RUN: _row(
        _GOES_DOWN, HALTED=Outcome(Way.DOES, "after starting it"), RUNNING=_DOES,
        TRANSIENT=Outcome(Way.WAITS, "for the start under way"),
        PAUSED=_refuses(QubeError, _UNPAUSE), SUSPENDED=_refuses(QubeError, _ASLEEP),
    ),
    Command.SHUTDOWN: _row(
        _ALREADY, HALTED=_NOT_STARTED,
        TRANSIENT=_refuses(NotRunningError, "is starting: wait until it runs, or kill it"),
        RUNNING=_DOES, PAUSED=_refuses(QubeError, _FROZEN), SUSPENDED=_refuses(QubeError, _ASLEEP),
        HALTING=Outcome(Way.DOES, "asks again"), CRASHED=_refuses(NotRunningError, "has crashed: kill it"),
    ),
    Command.KILL: _row(_DOES, HALTED=_NOT_STARTED, TRANSIENT=Outcome(Way.DOES, "and its start fails")),
    Command.PAUSE: _row(_refuses(NotRunningError), HALTED=_NOT_STARTED, RUNNING=_DOES, PAUSED=_ALREADY),
    Command.UNPAUSE: _row(_refuses(NotPausedError, "is not paused"), HALTED=_NOT_STARTED, PAUSED=_DOES),
    Command.SUSPEND: _row(_refuses(NotImplementedHereError, "cannot be put to sleep or woken here; pause it")),
    Command.CONSOLE: _row(_DOES, HALTED=_refuses(NotRunningError, "is not running")),
    Command.REMOVE: _row(_refuses(NotHaltedError), HALTED=_DOES),
    Command.RENAME: _row(_refuses(PropertyValueError, "keeps its name: clone it, and remove the old one")),
    Command.COPY: _row(Outcome(Way.DOES, "from the last saved state"), HALTED=_DOES, TRANSIENT=_WAITS),
    Command.RESIZE: _row(
        _refuses(NotHaltedError), HALTED=Outcome(Way.DOES, "the qube grows the file system at its next start"),
        TRANSIENT=_WAITS, RUNNING=Outcome(Way.DOES, "the qube grows the file system at once"),
    ),
    Command.REPLACE: _row(_refuses(NotHaltedError), HALTED=_DOES),
    Command.CHANGE: _row(_refuses(NotHaltedError), HALTED=_DOES),
    Command.DEVICE: _row(_refuses(NotRunningError, "is not running"), RUNNING=_DOES, PAUSED=_DOES),
}  # fmt: skip
"""Every command and every state."""


def decide(command: Command, name: str, state: PowerState) -> Way:
    """How the command ends for a qube in that state; raises the error of a refusal."""
    found = TABLE[command][PowerState.HALTED if state is PowerState.NA else state]
    if found.way is Way.REFUSES:
        raise found.error(f"{name} {found.words}")
    return found.way
