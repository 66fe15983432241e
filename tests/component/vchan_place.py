"""Daemons and agents over vchan as real processes in a directory of their own."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import casemate
from tests.fakes.foreign_qrexec import Client, ClientVm, PolicyDaemon, Vchan, allow

SOURCE = Path(casemate.__file__).parent.parent
ME = pwd.getpwuid(os.geteuid()).pw_name


class VchanPlace:
    """Sockets, services and the processes that use them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vchan_dir = directory / "v"
        self.sockets = directory / "s"
        self.services = directory / "rpc"
        self.host_services = directory / "host"
        for path in (self.vchan_dir, self.sockets, self.services, self.host_services):
            path.mkdir()
        self.vchan = Vchan(self.vchan_dir)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.variables: dict[str, str] = {}
        """Environment of the processes that are started from now on, besides the rest."""
        self.files = 0
        """Most descriptors of a process that is started from now on; 0: as many as it likes."""
        self._policies: list[PolicyDaemon] = []

    def service(self, name: str, script: str, host: bool = False) -> None:
        path = (self.host_services if host else self.services) / name
        path.write_text("#!/bin/sh\n" + script + "\n")
        path.chmod(0o755)

    def environment(self, domain: int = 0, host: bool = False) -> dict[str, str]:
        return {
            "PYTHONPATH": str(SOURCE),
            "PATH": os.environ["PATH"],
            "VCHAN_SOCKET_DIR": str(self.vchan_dir),
            "VCHAN_DOMAIN": str(domain),
            "QREXEC_SERVICE_PATH": str(self.host_services if host else self.services),
            "QUBES_RPC_CONFIG_PATH": str(self.directory / "config"),
            **self.variables,
        }

    def spawn(self, argv: list[str], env: dict[str, str], log: str) -> subprocess.Popen[bytes]:
        limit = ["prlimit", f"--nofile={self.files}:{self.files}"] if self.files else []
        process = subprocess.Popen(
            [*limit, sys.executable, "-m", *argv],
            env=env,
            stdout=subprocess.PIPE,
            stderr=open(self.directory / log, "ab"),
        )
        self.processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n", self.log(log)
        return process

    def log(self, name: str = "daemon.log") -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""

    def daemon(self, *domains: str, **options: str) -> subprocess.Popen[bytes]:
        words = [f"--socket-dir={self.sockets}", f"--policy-socket={self.directory}/policy.sock"]
        words += [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        argv = ["casemate.vchan.daemon", *words, *domains]
        return self.spawn(argv, self.environment(0, host=True), "daemon.log")

    def agent(self, domain: int) -> subprocess.Popen[bytes]:
        argv = ["casemate.vchan.agent", f"--domain={domain}", f"--agent-socket={self.agent_socket(domain)}"]
        return self.spawn(argv, self.environment(domain), f"agent{domain}.log")

    def agent_socket(self, domain: int) -> Path:
        return self.directory / f"agent{domain}"

    def policy(self, rule: Callable[[dict[str, str]], str] = allow) -> PolicyDaemon:
        made = PolicyDaemon(self.directory / "policy.sock", rule)
        self._policies.append(made)
        return made

    def client(self, name: str) -> Client:
        self.up(name)
        return Client(self.vchan, self.sockets / f"qrexec.{name}")

    def client_vm(self, domain: int) -> ClientVm:
        return ClientVm(self.vchan, domain, self.agent_socket(domain))

    def up(self, name: str) -> None:
        """Wait for the daemon's socket of a domain."""
        eventually(lambda: answers(self.sockets / f"qrexec.{name}"))

    def control(self, line: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            sock.connect(str(self.sockets / "casemate-qrexecd.sock"))
            sock.sendall(line.encode() + b"\n")
            text = ""
            while "ok\n" not in text and not text.startswith("error"):
                text += sock.recv(4096).decode()
            return text

    def close(self) -> None:
        for policy in self._policies:
            policy.close()
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def answers(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(path))
        return True
    return False


def eventually(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)
