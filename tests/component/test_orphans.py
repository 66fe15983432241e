"""Ended descendants whose parent has ended too are reaped, and those that somebody waits for are left to him."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import asyncio, json, os, sys
from casemate.host import orphans

orphans._LEADER_SECONDS = 0.5
# The middle one leads a session and ends at once, the last one ends when it is told to: as QEMU makes itself a daemon.
FORKS = '''
import os, sys
hold_first, hold_last, said = map(int, sys.argv[1:])
if os.fork() == 0:
    os.setsid()
    middle = os.getpid()
    if os.fork() == 0:
        os.write(said, f"{os.getpid()} {middle}".encode())
        os.read(hold_last, 1)
    os._exit(0)
os.read(hold_first, 1)
'''

def there(pid):
    return os.path.exists(f"/proc/{pid}")

async def status_of(number):
    child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}", start_new_session=True)
    return await child.wait()

async def main():
    orphans.become_subreaper()
    orphans.watch_orphans(asyncio.get_running_loop())
    held_first, first_ends = os.pipe()
    held_last, last_ends = os.pipe()
    heard, said = os.pipe()
    theirs = (held_first, held_last, said)
    first = await asyncio.create_subprocess_exec(sys.executable, "-c", FORKS, *map(str, theirs), pass_fds=theirs)
    last, middle = map(int, (await asyncio.to_thread(os.read, heard, 100)).split())
    os.write(first_ends, b"x")
    statuses = [await first.wait()]
    # Runner's children lead sessions of their own; each is waited for by asyncio, which must get its status.
    # Twenty at once, five times: whoever takes another's status does so in a race that it does not always win.
    found = []
    for _ in range(5):
        found += await asyncio.gather(*map(status_of, range(20)))
    statuses += found
    async with asyncio.timeout(60):
        while there(middle):
            await asyncio.sleep(0.05)
        before = there(last)
        os.write(last_ends, b"x")
        while there(last):
            await asyncio.sleep(0.05)
    print(json.dumps([before, statuses]))

asyncio.run(main())
"""


def test_orphans_are_reaped_and_children_keep_their_status() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, [0, *[*range(20)] * 5]], done.stderr
