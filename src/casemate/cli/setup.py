"""``casemate setup``: from nothing to a first qube in three questions at most; ``casemate status`` says what lacks.

A `Step` is one thing that a set-up host has. It is made only where it is missing, so setup can be run again at any
time: after an interruption it goes on, and what somebody has changed since stays as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, ValueInvalidError, printable
from casemate.wire.names import new_qube_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.wire.recipe import Recipe

NET, FIREWALL, DISPOSABLE = "sys-net", "sys-firewall", "dvm"
"""Names of the qubes that setup makes beside the first one: upstream's for the net qubes, our tour's for the third."""
FIRST = "work"
"""Name of the first qube where nobody gives another."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The answers to the three questions."""

    recipe: Recipe
    network: bool
    first: str


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that setup makes: ``missing`` says whether to, ``make`` does so and returns an exit status."""

    what: str
    missing: bool
    make: Callable[[], int] = field(repr=False)


def lacks_network(qubes: Qubes) -> str:
    """Why qubes of this host can have no network; empty where they can."""
    line = str(qubes.status().get("network", ""))
    return line.removeprefix("none for qubes: ") if line.startswith("none") else ""


def steps(qubes: Qubes, wish: Wish) -> list[Step]:
    """Everything that a set-up host has, in the order in which one needs the other."""
    from casemate.cli import template

    name = wish.recipe.default_name
    found = {qube.name: qube.klass for qube in qubes.listed()}
    templates = [one for one, klass in found.items() if klass == "TemplateVM"]
    wanted = [Step(f"template {name}", not templates, lambda: template.install(qubes, wish.recipe, name))]
    if templates:  # a template that is made becomes the default at its end, which a crash may have prevented
        default = name if name in templates else templates[0]
        wanted.append(_global(qubes, "default_template", default))
        wanted.append(_global(qubes, "default_kernel", qubes.get(default, "kernel").text))
    if wish.network:
        provides = {"provides_network": "True"}
        wanted += [
            _qube(qubes, found, NET, "red", {**provides, "netvm": ""}, {"net.uplink": "pasta"}),
            _qube(qubes, found, FIREWALL, "green", {**provides, "netvm": NET}),
            _global(qubes, "default_netvm", FIREWALL),
        ]
    wanted += [
        _qube(qubes, found, DISPOSABLE, "gray", {"template_for_dispvms": "True"}),
        _global(qubes, "default_dispvm", DISPOSABLE),
    ]
    # A first qube is there when anybody has made one, whatever it is called.
    helpers = (NET, FIREWALL, DISPOSABLE)
    has_first = any(klass in ("AppVM", "StandaloneVM") and one not in helpers for one, klass in found.items())
    first = _qube(qubes, found, wish.first, "blue", {})
    return [*wanted, Step(first.what, not has_first, first.make)]


def _qube(
    qubes: Qubes,
    found: Mapping[str, str],
    name: str,
    label: str,
    properties: Mapping[str, str],
    features: Mapping[str, str] | None = None,
) -> Step:
    def make() -> int:
        qubes.create("AppVM", name, label)
        try:
            for key, value in properties.items():
                qubes.set(name, key, value)
            for key, value in (features or {}).items():
                qubes.call("admin.vm.feature.Set", key, name, value)
        except BaseException:
            qubes.remove(name)  # half of a net qube would count as there at the next run
            raise
        return 0

    return Step(f"qube {name}", name not in found, make)


def _global(qubes: Qubes, name: str, value: str) -> Step:
    def make() -> int:
        qubes.set(None, name, value)
        return 0

    return Step(f"{name} {value}", bool(value) and not qubes.get(None, name).text, make)


def missing(qubes: Qubes) -> list[str]:
    """What a set-up host would have besides, in words; for ``casemate status``."""
    return [step.what for step in steps(qubes, _defaults(qubes)) if step.missing]


def _defaults(qubes: Qubes) -> Wish:
    from casemate.cli.template import default_suite
    from casemate.wire.recipe import Recipe

    return Wish(Recipe(default_suite()), not lacks_network(qubes), FIRST)


def _ask(question: str, default: str) -> str:
    sys.stdout.write(f"{question} [{default}] ")
    sys.stdout.flush()
    line = sys.stdin.readline()
    if not line:
        raise CasemateError("Nobody answers on standard input: casemate setup --yes takes the defaults")
    return line.strip() or default


def _answers(qubes: Qubes, default: Wish) -> Wish:
    """Ask the three questions; ValueInvalidError for an answer that cannot be."""
    from casemate.wire.recipe import RELEASES, Recipe

    suite = _ask(f"Template of which Debian ({', '.join(RELEASES)})?", default.recipe.suite)
    if suite not in RELEASES:
        raise ValueInvalidError(f"{printable(suite)} is no release of Debian that templates are built of")
    network = False
    if default.network:
        network = _yes(_ask("Network for qubes, through two net qubes (yes, no)?", "yes"))
    return Wish(Recipe(suite), network, new_qube_name(_ask("Name of the first qube?", default.first)))


def _yes(answer: str) -> bool:
    word = answer.lower()
    if word not in ("y", "yes", "n", "no"):
        raise ValueInvalidError(f"{printable(answer)} is neither yes nor no")
    return word in ("y", "yes")


def run(args: argparse.Namespace, qubes: Qubes) -> int:
    """Ask, then make what is missing; an exit status."""
    if qubes.transport.settings.shared:
        raise CasemateError("These qubes are those of the whole host, which root sets up: sudo casemate setup")
    wish = _defaults(qubes)
    if why := lacks_network(qubes):
        print(f"No net qubes: {printable(why)}")
    if not args.yes:
        wish = _answers(qubes, wish)
    made = False
    for step in steps(qubes, wish):
        if not step.missing:
            continue
        print(f"Making {step.what}", flush=True)
        if status := step.make():
            return status
        made = True
    print(f"Set up. Next: qvm-run --pass-io {wish.first} id" if made else "Everything is there already")
    return 0


def add_to(commands: argparse._SubParsersAction[tool.Subparser]) -> None:
    """The command ``setup``."""
    setup = commands.add_parser("setup", help="make a template, net qubes, a disposable template and a first qube")
    setup.add_argument("-y", "--yes", action="store_true", help="ask nothing, take the defaults")
    setup.set_defaults(body=run)
