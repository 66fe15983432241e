"""What casemated, the link of a qube and the agent in it say to each other besides qrexec and QubesDB.

A stream of the channel starts with one byte that says what it is for, then the body:

=========  ==========  =======================================================================
``CALL``   host        an EXEC_CMDLINE or JUST_EXEC message; then the data phase of qrexec
``CALL``   guest       a TRIGGER_SERVICE4 message; answered with SERVICE_CONNECT or _REFUSED
``DATA``   guest       the QubesDB session (one at a time)
``READY``  guest       JSON ``{"boot_id": ..., "identity": ...}``: services can be called now
``POWER``  host        ``off``: power off in an orderly way
``PING``   host        nothing: the agent gives the stream up at once, which is a sign of life
``FREEZE`` host        ``1``: stop all other programs; ``0`` and the time: let them go on; answered with DONE
=========  ==========  =======================================================================

Casemated (and only its user) speaks CONTROL messages on the link's socket: ``msg_header`` of type CONTROL, then JSON;
each is answered with one.
"""

from __future__ import annotations

import struct

from casemate.wire.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


CALL = b"c"
DATABASE = b"d"
READY = b"r"
POWER = b"p"
PING = b"i"
"""No agent knows it: what it does not know it gives up, and so do agents of before there was such a question."""

FREEZE = b"f"
"""While a guest is copied, and in the copy until it has an identity of its own, nothing but its agent runs."""
DONE = b"done"
"""The answer to FREEZE. An agent that cannot do it, or knows nothing of it, gives the stream up."""

FORK_KEY = "/casemate-fork"
"""Key of the database of a fork: a value that no other qube has. An agent that reads a new one there was copied, and
takes an identity of its own before it lets programs go on."""
IMAGE_KEY = "/casemate-image"
"""Key of the database that a guest has while it boots to become a warm image: its agent takes no identity then."""
NONE_YET, NOTHING_MOUNTED, RENEWED = "none", "none, private later", "renewed"
"""What an agent says of its guest's identity: it has taken none, because it is to become an image; nor has it mounted
the private disk, which in each guest that goes on is another; it has taken one of its own after it went on from an
image. An agent that knows nothing of images says none of these."""
PRIVATE_LATER = "casemate.private=later"
"""On the kernel's command line: the private disk is mounted by the agent, when it has an identity."""
PRIVATE_SIZE_KEY = "/casemate-private-size"
"""Key of the database: bytes that the private disk has, for a guest that was saved with another."""
TIME_KEY = "/casemate-time"
"""Key of the database: the host's time when the session began, in seconds since the epoch. A guest that goes on from a
warm image has the time of its image until then."""

CONTROL = 0x401
"""Type of a control message; outside the range that qrexec uses."""

MAX_CONTROL = 60000
_HEADER = struct.Struct("<II")


def control_message(body: dict[str, Any]) -> bytes:
    """A control message or the answer to one."""
    import json  # slow to import, and agents need only the constants

    data = json.dumps(body).encode()
    if len(data) > MAX_CONTROL:
        raise ProtocolError("control message too long")
    return _HEADER.pack(CONTROL, len(data)) + data


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object of a bounded size, else ProtocolError."""
    import json

    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError(f"{what}: not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"{what}: not an object")
    return value
