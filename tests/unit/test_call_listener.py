"""The call socket of a qube: what is left of it when it is closed."""

from __future__ import annotations

import asyncio
import os
import socket

from casemate.qrexec.listener import CallListener, CallRequest
from tests.builders import settings_in, short_directory, within


async def _nobody(_connection: socket.socket, _request: CallRequest) -> None:
    raise AssertionError("nobody asks")


def test_a_file_that_gets_the_number_of_a_closed_socket_is_watched() -> None:
    """asyncio forgets a descriptor whose wait was cancelled in the next round, and so did not ask for one that had the
    number by then: the end of a program was not heard of, and the stop of a qube waited for it for ever."""

    async def work() -> None:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        with short_directory() as directory:
            listener = CallListener(settings_in(directory))
            listener.serve(_nobody)
            settings_in(directory).qube_run("work").mkdir(parents=True)
            await listener.open("work")
            await asyncio.sleep(0)
            number = listener._listening["work"][0].fileno()
            await listener.close("work")
            reading, writing = os.pipe()
            if reading != number:
                os.dup2(reading, number, inheritable=False)
            loop.add_reader(number, told.set)
            os.write(writing, b"x")
            await within(30, told.wait())
            loop.remove_reader(number)
            for fd in {reading, writing, number}:
                os.close(fd)

    asyncio.run(work())
