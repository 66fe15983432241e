"""``casemate setup`` over the real daemon, from states that an interruption can leave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from casemate.cli import setup
from casemate.cli.clean import clean_state
from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.store.store import Store
from casemate.wire.errors import CasemateError
from casemate.wire.recipe import Recipe
from tests.builders import settings_in, short_directory, uuid

WISH = setup.Wish(Recipe("bookworm"), True, "work")


@pytest.fixture
def qubes() -> Iterator[Qubes]:
    """A state with a template that is not the default one: the daemon was killed just before it made it so."""
    with short_directory() as directory:
        settings = settings_in(directory, prefix="casemate-set-")
        with Store(settings.store_file).write() as transaction:
            transaction.system.add("TemplateVM", "deb", uuid=uuid(1), label="black").set("kernel", "some-kernel")
        kernel = settings.state / "kernels" / "some-kernel"
        kernel.mkdir(parents=True)
        for name in ("vmlinuz", "initrd", "initrd-net"):
            (kernel / name).touch()
        transport = Transport(settings)
        try:
            yield Qubes(transport)
        finally:
            clean_state(settings)


def missing(qubes: Qubes) -> list[str]:
    return [step.what for step in setup.steps(qubes, WISH) if step.missing]


def test_it_goes_on_where_it_was_broken_off(qubes: Qubes) -> None:
    everything = [
        "default_template deb", "default_kernel some-kernel", "qube sys-net", "qube sys-firewall",
        "default_netvm sys-firewall", "qube dvm", "default_dispvm dvm", "qube work",
    ]  # fmt: skip
    for done in range(len(everything)):  # each step in a run of its own, as if the run had been killed after it
        assert missing(qubes) == everything[done:]
        next(step for step in setup.steps(qubes, WISH) if step.missing).make()
    assert missing(qubes) == []
    assert qubes.get("sys-firewall", "netvm").text == "sys-net" and qubes.get("work", "netvm").text == "sys-firewall"


def test_half_of_a_qube_does_not_stay(qubes: Qubes, monkeypatch: pytest.MonkeyPatch) -> None:
    next(step for step in setup.steps(qubes, WISH) if step.what == "default_template deb").make()
    (step,) = [step for step in setup.steps(qubes, WISH) if step.what == "qube sys-net"]
    call = qubes.transport.call

    def refuse(method: str, *args: object, **words: object) -> bytes:
        if method == "admin.vm.feature.Set":
            raise CasemateError("the disk is full")
        return call(method, *args, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(qubes.transport, "call", refuse)
    with pytest.raises(CasemateError, match="the disk is full"):
        step.make()
    assert "qube sys-net" in missing(qubes)
