"""apt in a template that has no network goes through a net qube, and the template's qubes have what it installed."""

from __future__ import annotations

import subprocess

import pytest

from tests.live.network.conftest import Net
from tests.live.network.outside import MIRROR
from tests.live.world import TEMPLATE

pytestmark = pytest.mark.live

NAME = "casemate-proof"


def _publish(net: Net) -> None:
    """A mirror with one package."""
    tree = net.outside.mirror / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/bin").mkdir(parents=True)
    control = f"Package: {NAME}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: proof\n"
    (tree / "DEBIAN/control").write_text(control)
    program = tree / "usr/bin" / NAME
    program.write_text("#!/bin/sh\necho proved\n")
    program.chmod(0o755)
    package = net.outside.mirror / f"{NAME}.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, package], check=True, capture_output=True)
    digest = subprocess.run(["sha256sum", package], check=True, capture_output=True, text=True).stdout.split()[0]
    entry = f"{control}Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n"
    (net.outside.mirror / "Packages").write_text(entry)


def test_apt_in_a_template_reaches_its_qubes(net: Net) -> None:
    _publish(net)
    net.outside.zone({"mirror.example.org": [MIRROR]})
    net.run("qvm-start", TEMPLATE)
    try:
        assert net.inside(TEMPLATE, "ls /sys/class/net") == "lo"
        source = "deb [trusted=yes] http://mirror.example.org ./"
        only = "-o Dir::Etc::sourcelist=/etc/apt/proof.list -o Dir::Etc::sourceparts=/dev/null"
        net.inside(TEMPLATE, f"echo '{source}' > /etc/apt/proof.list && apt-get {only} -q update", "root")
        net.inside(TEMPLATE, f"apt-get {only} -q -y install {NAME}", "root")
        assert net.inside(TEMPLATE, NAME) == "proved"
        # By name or address, the proxy goes neither between qubes nor into its own.
        for place in (f"{net.ip('open')}", "127.0.0.1", "10.139.1.1"):
            request = (
                f"exec 3<>/dev/tcp/127.0.0.1/8082; printf 'GET http://{place}/ HTTP/1.1\\r\\n\\r\\n' >&3; head -1 <&3"
            )
            assert "403" in net.inside(TEMPLATE, f'bash -c "{request}"')
    finally:
        net.run("qvm-shutdown", "--wait", TEMPLATE)
    # The net qube's own look-up of names goes by its resolvers, as that of every program there.
    net.run("qvm-shutdown", "--wait", "shut")
    net.begin("shut")
    assert net.inside("shut", NAME) == "proved"
    assert net.inside("shut", "ls /etc/apt/apt.conf.d/01casemate-proxy 2>/dev/null | wc -l") == "0"
