"""Calls between real qubes and the host: policy, copies, disposables, many at once."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def vault(world: World) -> Iterator[str]:
    """A second running qube, and a disposable template."""
    world.run("qvm-create", "--label", "black", "vault")
    world.run("qvm-create", "--label", "gray", "--prop", "template_for_dispvms=True", "dvm")
    world.run("qvm-features", "dvm", "preload-dispvm-max", "0")  # none waits for its use, where tests look for traces
    world.run("qvm-start", "vault")
    yield "vault"
    world.run("qvm-kill", "vault", status=None)
    wait_for(lambda: world.state("vault") == "Halted")
    world.run("qvm-remove", "-f", "vault", "dvm")


@pytest.fixture
def policy(world: World) -> Iterator[Path]:
    """A policy file of the test's own."""
    path = world.settings.policy_dir / "30-test.policy"
    yield path
    path.unlink(missing_ok=True)


def test_exit_status_and_both_outputs_pass_through(world: World, usable: str) -> None:
    done = world.run("qvm-run", "--pass-io", usable, "cat; echo err >&2; exit 42", status=42, data=b"in")
    assert (done.stdout, done.stderr) == (b"in", b"err\n")


def test_without_pass_io_nothing_of_the_qube_reaches_the_terminal(world: World, usable: str) -> None:
    done = world.run("qvm-run", usable, "printf '\\033]0;title\\007'; printf '\\033[31m' >&2")
    assert b"\x1b" not in done.stdout + done.stderr


def test_words_of_a_command_reach_it_unchanged(world: World, usable: str) -> None:
    odd = ["a b", "$HOME", "*", "'\"", "--", "-n", "\\", "ü"]
    done = world.run("qvm-run", "--pass-io", "--no-shell", usable, "--", "/usr/bin/printf", "%s\\n", *odd)
    assert done.stdout.decode() == "".join(f"{word}\n" for word in odd)


def test_root_and_user_are_who_they_should_be(world: World, usable: str) -> None:
    assert world.inside(usable, "id -un") == "user"
    assert world.inside(usable, "id -un", user="root") == "root"
    assert world.run("qvm-run", "--pass-io", "-u", "nosuchuser", usable, "id", status=None).returncode != 0


def test_no_such_service_is_127(world: World, usable: str) -> None:
    world.run("qvm-run", "--pass-io", "--service", usable, "no.such.Service", status=127)


def test_a_thousand_calls_none_lost(world: World, usable: str) -> None:
    import asyncio

    from tests.component.rig import Rig

    rig = Rig.__new__(Rig)
    rig.directory = world.settings.qube_run(usable)

    async def many() -> list[tuple[int, bytes]]:
        gate = asyncio.Semaphore(16)

        async def one(number: int) -> tuple[int, bytes]:
            async with gate:
                status, out, _err = await rig.call_async(f"qubes.VMExec+echo+{number}")
                return status, out

        return await asyncio.gather(*(one(n) for n in range(1000)))

    assert asyncio.run(many()) == [(0, b"%d\n" % n) for n in range(1000)]


def test_copy_is_refused_then_allowed_by_one_line_and_the_change_applies_at_once(
    world: World, usable: str, vault: str, policy: Path
) -> None:
    world.inside(usable, "rm -rf d; mkdir d; head -c 5000000 /dev/urandom > d/f; ln -s f d/link; chmod 6755 d/f")
    want = world.inside(usable, "sha256sum < d/f")
    assert world.run("qvm-run", "--pass-io", usable, f"qvm-copy-to-vm {vault} d", status=None).returncode == 126
    assert world.inside(vault, "ls -A | grep -c QubesIncoming || true") == "0"
    policy.write_text(f"qubes.Filecopy * {usable} {vault} allow\n")
    world.inside(usable, f"qvm-copy-to-vm {vault} d")
    incoming = f"QubesIncoming/{usable}/d"
    assert world.inside(vault, f"sha256sum < {incoming}/f") == want
    assert world.inside(vault, f"stat -c %a {incoming}/f; readlink {incoming}/link") == "755\nf"
    # A second copy of the same name must not overwrite, and says so.
    again = world.run("qvm-run", "--pass-io", usable, f"qvm-copy-to-vm {vault} d", status=None)
    assert again.returncode not in (0, 126)
    assert re.search(rb"exist", again.stderr)
    policy.unlink()
    assert world.run("qvm-run", "--pass-io", usable, f"qvm-copy-to-vm {vault} d", status=None).returncode == 126


def test_a_broken_policy_denies_everything(world: World, usable: str, vault: str, policy: Path) -> None:
    policy.write_text(f"qubes.Filecopy * {usable} {vault} allow\nthis is no rule\n")
    world.inside(usable, "echo > one")
    assert world.run("qvm-run", "--pass-io", usable, f"qvm-copy-to-vm {vault} one", status=None).returncode == 126
    assert "30-test.policy" in world.log()


def test_default_target_is_redirected_by_policy(world: World, usable: str, vault: str, policy: Path) -> None:
    policy.write_text(f"qubes.Filecopy * {usable} @default allow target={vault}\n")
    world.inside(usable, "echo x > by-default; qvm-copy by-default; rm -rf QubesIncoming")
    assert world.inside(vault, f"cat QubesIncoming/{usable}/by-default") == "x"


def test_a_call_starts_a_halted_target(world: World, usable: str, policy: Path) -> None:
    world.run("qvm-create", "--label", "red", "sleeper")
    policy.write_text(f"qubes.Filecopy * {usable} sleeper allow\n")
    world.inside(usable, "echo x > wake; qvm-copy-to-vm sleeper wake")
    assert world.state("sleeper") == "Running"
    assert world.inside("sleeper", f"cat QubesIncoming/{usable}/wake") == "x"
    world.run("qvm-kill", "sleeper")
    world.run("qvm-remove", "-f", "sleeper")


def test_a_service_of_the_host_serves_a_qube_that_policy_lets_in(world: World, usable: str, policy: Path) -> None:
    services = world.settings.state / "qubes-rpc"
    services.mkdir(exist_ok=True)
    program = services / "test.Upper"
    program.write_text('#!/bin/sh\necho "$QREXEC_REMOTE_DOMAIN $1"\nexec tr a-z A-Z\n')
    program.chmod(0o755)
    call = "echo hello | qrexec-client-vm @adminvm test.Upper+arg"
    assert world.run("qvm-run", "--pass-io", usable, call, status=None).returncode == 126
    policy.write_text(f"test.Upper * {usable} @adminvm allow\n")
    assert world.inside(usable, call) == f"{usable} arg\nHELLO"


def test_a_disposable_for_a_call_of_a_qube_is_gone_after_it(
    world: World, usable: str, vault: str, policy: Path
) -> None:
    policy.write_text(f"qubes.VMShell * {usable} @dispvm:dvm allow\n")
    out = world.inside(usable, "echo 'hostname; exit 5' | qrexec-client-vm @dispvm:dvm qubes.VMShell; echo $?")
    name, status = out.split()
    assert re.fullmatch(r"disp[0-9]+", name)
    assert status == "5"
    wait_for(lambda: name not in world.qubes())
    assert name not in world.machines()
    assert not (world.settings.state / "pools" / "default" / name).exists()


def test_a_killed_disposable_run_leaves_no_disposable(world: World, vault: str) -> None:
    tool = world.start("qvm-run", "--pass-io", "--dispvm=dvm", "echo up; sleep 100")
    assert tool.stdout is not None
    assert tool.stdout.readline() == b"up\n"
    tool.terminate()
    tool.communicate(timeout=30)
    wait_for(lambda: not any(name.startswith("disp") for name in world.qubes()))
    assert not any(name.startswith("disp") for name in world.machines())


def test_megabytes_keep_their_hash(world: World, usable: str) -> None:
    data = os.urandom(20 << 20)
    done = world.run("qvm-run", "--pass-io", usable, "cat", data=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_a_stalled_reader_harms_no_other_call_of_the_qube(world: World, usable: str) -> None:
    stalled = world.start("qvm-run", "--pass-io", usable, "head -c 50000000 /dev/zero")  # nobody reads its stdout
    time.sleep(2)
    begin = time.monotonic()
    assert world.inside(usable, "echo quick") == "quick"
    assert time.monotonic() - begin < 10
    stalled.kill()
    stalled.communicate()


def test_a_flood_of_calls_is_cut_and_others_are_served(world: World, usable: str, vault: str) -> None:
    flood = (
        "python3 - <<'E'\n"
        "import socket, struct\n"
        "def field(text, size): return text.encode().ljust(size, b'\\0')\n"
        "refused = 0\n"
        "for n in range(600):\n"
        "    s = socket.socket(socket.AF_UNIX); s.connect('/run/qubes/qrexec-agent.sock')\n"
        "    body = field('', 64) + field('nobody', 64) + field('id', 32) + b'test.Flood\\0'\n"
        "    s.sendall(struct.pack('<II', 0x213, len(body)) + body)\n"
        "    refused += struct.unpack('<II', s.recv(8))[0] == 0x203\n"
        "    s.close()\n"
        "print(refused)\n"
        "E"
    )
    assert world.inside(usable, flood) == "600"
    assert world.inside(vault, "echo fine") == "fine"
    assert world.inside(usable, "echo fine") == "fine"


def test_methods_of_the_api_are_services_of_this_host(world: World, usable: str) -> None:
    """As upstream's policy editor calls them."""

    def call(command: str) -> bytes:
        return world.run("qrexec-client", "-d", "dom0", f"DEFAULT:QUBESRPC {command}").stdout

    assert call("policy.List+ dom0").startswith(b"0\0")
    assert f"{usable} class=AppVM state=Running".encode() in call("admin.vm.List+ dom0")
    assert call(f"admin.vm.property.Get+klass dom0 name {usable}").endswith(b"AppVM")
    assert call("admin.vm.property.Get+klass dom0 name nobody").startswith(b"2\0QubesVMNotFoundError\0")


def test_a_command_without_input_and_output_runs(world: World, usable: str) -> None:
    """Its answer comes at once, though it has not ended."""
    command = "user:cd; while ! [ -e go-on ]; do sleep 0.1; done; printf '%s %s' 'ran' by > ran-by-e; exit 7"
    world.run("qrexec-client", "-e", "-d", usable, command)
    world.inside(usable, "touch ~/go-on")
    wait_for(lambda: world.inside(usable, "cat ~/ran-by-e", status=None) == "ran by")


def test_an_interrupt_reaches_the_program_and_detached_ones_go_on(world: World, usable: str) -> None:
    """As on a terminal that is closed: the command gets SIGHUP, also when it only sleeps."""

    def runs(mark: str) -> bool:
        return (
            world.inside(usable, f"cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'slee[p] {mark}'", status=None)
            != "0"
        )

    def ended(words: list[str], mark: str) -> subprocess.Popen[bytes]:
        tool = world.start(*words, stdin=subprocess.PIPE)
        wait_for(lambda: runs(mark))
        tool.send_signal(signal.SIGINT)
        tool.wait(30)
        return tool

    interrupted = ended(["qvm-run", "-p", usable, "sleep 4321; echo never"], "4321")
    assert interrupted.returncode == 130
    wait_for(lambda: not runs("4321"))
    # Killed, not interrupted; and a command that reads its input sees the end of it.
    killed = subprocess.Popen(["qvm-run", "-p", usable, "sleep 4322"], env=world.environment, stdin=subprocess.PIPE)
    wait_for(lambda: runs("4322"))
    killed.kill()
    killed.wait(30)
    wait_for(lambda: not runs("4322"))
    # Without -p nothing is joined to the tool: what it began goes on.
    ended(["qvm-run", usable, "sleep 4323"], "4323")
    assert runs("4323")
    world.inside(usable, "kill $(grep -als 'slee[p].4323' /proc/[0-9]*/cmdline | cut -d/ -f3)", status=None)


def test_output_that_cannot_be_written_is_told(world: World, usable: str) -> None:
    """A full disk, or a descriptor that is closed: it hung, or ended with 0 and nothing written."""
    for redirection in (">/dev/full", ">&-"):
        for tool in (f"qvm-run -p {usable} 'echo lost'", f"qrexec-client -d {usable} 'user:echo lost'"):
            done = world.run("bash", "-c", f"{tool} {redirection}", status=74, timeout=60)
            assert b"output of the call is lost" in done.stderr
    done = world.run("bash", "-c", f"qvm-run -p {usable} 'cat; echo on' <&-", timeout=60)
    assert done.stdout == b"on\n"
