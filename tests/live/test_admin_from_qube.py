"""The Admin API asked from inside a real qube."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.world import TEMPLATE, World

pytestmark = pytest.mark.live

RULES = """
admin.vm.List           *  {qube}  @adminvm     allow
admin.vm.List           *  {qube}  {template}    allow target=dom0
admin.vm.property.Get   *  {qube}  {template}    allow target=dom0
admin.vm.feature.Set    *  {qube}  {template}    allow
"""


@pytest.fixture
def manager(world: World, usable: str) -> Iterator[str]:
    path = world.settings.policy_dir / "30-admin-test.policy"
    path.write_text(RULES.format(qube=usable, template=TEMPLATE))
    yield usable
    path.unlink()


def test_a_qube_manages_what_the_policy_gives_it_and_learns_of_nothing_else(world: World, manager: str) -> None:
    def ask(service: str, target: str, payload: str = "") -> str:
        return world.inside(
            manager, f"printf %s '{payload}' | qrexec-client-vm {target} {service} | tr '\\0' '|'; true"
        )

    listed = ask("admin.vm.List", "dom0").removeprefix("0|").splitlines()
    assert [line.split()[0] for line in listed] == ["dom0", TEMPLATE, manager]
    assert ask("admin.vm.property.Get+klass", TEMPLATE).endswith("type=str TemplateVM")
    assert ask("admin.vm.feature.Set+from-inside", TEMPLATE, "yes") == "0|"
    assert world.run("qvm-features", TEMPLATE, "from-inside").stdout == b"yes\n"
    world.run("qvm-features", "--unset", TEMPLATE, "from-inside")
    for service, target in (
        ("admin.vm.feature.Set+x", "dom0"),
        ("admin.vm.property.Get+klass", "nobody"),
        ("admin.vm.Kill", TEMPLATE),
        ("admin.no.Such", "dom0"),
    ):
        command = f"qrexec-client-vm {target} {service} < /dev/null; echo status $?"
        assert world.inside(manager, command).splitlines()[-1] == "status 126"
