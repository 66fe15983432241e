"""Serves one image, read-only, over NBD on a unix socket, for whoever reads it piece by piece. Uses QEMU's own server.

The server runs as the user whose machine wrote the image, as every tool does that interprets one. It ends with the
daemon, however that ends: the kernel kills it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from casemate.host.process import Runner, what_went_wrong
from casemate.streams.long_address import shortened
from casemate.wire.errors import StorageError

EXPORT = "volume"
"""Name of the one export."""
_READY_SECONDS = 60.0
"""How long the server may take until it listens. It opens the image and its layers first: milliseconds."""
_GREETING = b"NBDMAGIC"
_SAID = 8192


@asynccontextmanager
async def nbd_export(
    runner: Runner, path: Path, image_format: str, account: tuple[int, int] | None, address: Path
) -> AsyncIterator[None]:
    """Serve the image on the socket until the block ends; StorageError when it cannot be opened.

    The socket is open to our own user alone. The export tells which clusters lie in which layer (metadata context
    ``qemu:allocation-depth``).
    """
    image = {
        "driver": image_format, "node-name": "image", "read-only": True,
        "file": {"driver": "file", "filename": str(path), "read-only": True},
    }  # fmt: skip
    with _listener(address) as listener:
        process = await runner.spawn(
            [
                "setpriv", "--pdeathsig", "KILL", "--", "qemu-storage-daemon",
                "--blockdev", json.dumps(image),
                "--nbd-server", f"addr.type=fd,addr.str={listener.fileno()}",
                "--export", f"nbd,id=export,node-name=image,name={EXPORT},writable=off,allocation-depth=on",
            ],
            pass_fds=[listener.fileno()], stderr=asyncio.subprocess.PIPE, user=account[0] if account else None,
        )  # fmt: skip
    try:
        if not await _serves(address):
            assert process.stderr is not None
            raise StorageError(f"{path} cannot be read:\n{what_went_wrong(await process.stderr.read(_SAID))}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
        address.unlink(missing_ok=True)


def _listener(address: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with shortened(address) as short:
            listener.bind(short)
        address.chmod(0o600)
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    return listener


async def _serves(address: Path) -> bool:
    """Whether the server greets a client: then the image is open. False when it has ended."""
    try:
        with shortened(address) as short:
            reader, writer = await asyncio.open_unix_connection(short)
    except OSError:
        return False
    try:
        async with asyncio.timeout(_READY_SECONDS):
            return await reader.readexactly(len(_GREETING)) == _GREETING
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.close()
