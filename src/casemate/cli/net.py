"""``casemate net``: the network of qubes as a table, a graph or a picture; counters; which rule decides."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from casemate.cli import json_output, tool
from casemate.cli.table import table
from casemate.client.network_tree import HOST, tree, upward_traffic, way_out
from casemate.client.qubes import Qubes
from casemate.wire.errors import printable

_ROW, _COLUMN, _BOX_WIDTH, _BOX_HEIGHT = 70, 230, 170, 44


def add_to(commands: Any) -> None:
    """Add the command ``net``."""
    net = commands.add_parser("net", help="show the network of qubes, its counters, which rule decides")
    verbs = net.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=tool.Subparser)
    show = verbs.add_parser("show", help="who reaches whom, through what")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--dot", action="store_true", help="a graph for Graphviz")
    form.add_argument("--svg", action="store_true", help="a picture")
    form.add_argument("--json", action="store_true", help="all that is known, as JSON")
    show.set_defaults(body=_show)
    stats = verbs.add_parser("stats", help="traffic of each interface, and what was dropped, by cause")
    stats.add_argument("--json", action="store_true")
    stats.set_defaults(body=_stats)
    explain = verbs.add_parser("explain", help="which rule decides whether a qube reaches a place")
    explain.add_argument("QUBE")
    explain.add_argument("PLACE", help="HOST or HOST:PORT; IPv6 addresses with a port in brackets")
    explain.add_argument("--proto", choices=("tcp", "udp", "icmp"), default="tcp", help="default: tcp")
    json_output.option(explain)
    explain.set_defaults(body=_explain)


def _report(qubes: Qubes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(qubes.call("admin.casemate.net.Show"))
    return found


def _show(args: argparse.Namespace, qubes: Qubes) -> int:
    report = _report(qubes)
    if args.json:
        print(json.dumps(report, indent=2))
    elif args.dot:
        print(dot(report["qubes"]), end="")
    elif args.svg:
        print(svg(report["qubes"]), end="")
    else:
        if report["why"]:
            print(f"Qubes have no network on this host: {printable(report['why'])}\n")
        rows = [["QUBE", "STATE", "THROUGH", "ADDRESS", "RULES", "SENT", "RECEIVED", "DROPPED"]]
        rows += [_row(depth, one) for depth, one in tree(report["qubes"])]
        print(table(rows), end="")
    return 0


def _through(one: dict[str, Any]) -> str:
    return str(one["netvm"] or (f"({way_out(one)})" if one["uplink"] else "-"))


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 10240:
            return f"{count} {unit}"
        count //= 1024
    return f"{count} GiB"


def _row(depth: int, one: dict[str, Any]) -> list[str]:
    traffic = upward_traffic(one)
    dropped = sum(packets for causes in one["dropped"].values() for packets in causes.values())
    rules = "unreadable" if one["rules"] is None else str(one["rules"])
    return [
        "  " * depth + one["name"], one["state"], _through(one), one["ip"] or "-", rules,
        _bytes(traffic["sent_bytes"]) if traffic else "-", _bytes(traffic["received_bytes"]) if traffic else "-",
        str(dropped),
    ]  # fmt: skip


def _stats(args: argparse.Namespace, qubes: Qubes) -> int:
    found = _report(qubes)["qubes"]
    if args.json:
        print(
            json.dumps({one["name"]: {"traffic": one["traffic"], "dropped": one["dropped"]} for one in found}, indent=2)
        )
        return 0
    rows = [["QUBE", "TAP", "SENT", "PACKETS", "RECEIVED", "PACKETS", "NOT FETCHED", "DROPPED"]]
    for one in found:
        for tap, traffic in one["traffic"].items():
            causes = one["dropped"].get(tap, {})
            rows.append(
                [
                    one["name"], tap, _bytes(traffic["sent_bytes"]), str(traffic["sent_packets"]),
                    _bytes(traffic["received_bytes"]), str(traffic["received_packets"]),
                    str(traffic["received_dropped"]),
                    ", ".join(f"{cause} {packets}" for cause, packets in causes.items()) or "-",
                ]
            )  # fmt: skip
    print(table(rows), end="")
    return 0


def split_place(text: str) -> tuple[str, str]:
    """Host and port (or empty) of HOST, HOST:PORT, [HOST]:PORT or an IPv6 address."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise tool.UsageError(f"not a place: {text}")
        return host, rest[1:]
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, ""


def _explain(args: argparse.Namespace, qubes: Qubes) -> int:
    host, port = split_place(args.PLACE)
    wish = f"{host} {args.proto}" + (f" {port}" if port else "")
    found = json.loads(qubes.call("admin.casemate.net.Explain", "", args.QUBE, wish))
    steps = found["steps"]
    verdicts = [step["passes"] for step in steps]
    whole = "no" if False in verdicts else "it depends" if None in verdicts else "yes"
    if json_output.wanted(args):
        json_output.write({"qube": args.QUBE, "verdict": whole, **found})
        return 0 if whole == "yes" else 1
    print(f"{args.QUBE}, {found['place']}: {whole}")
    for step in steps:
        says = {True: "passes", False: "stops", None: "depends"}[step["passes"]]
        print(f"  {says:<8} {step['where']}: {printable(step['why'])}")
        if step["change"] and (step["passes"] is not True or step is steps[0]):
            print(f"           to change it: {printable(step['change'])}")
    return 0 if whole == "yes" else 1


# -- pictures


def _edges(qubes: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, bool]]:
    """(from, to, label, whether traffic can pass now)."""
    for _depth, one in tree(qubes):
        if one["netvm"] is None and not one["uplink"]:
            continue
        traffic = upward_traffic(one)
        label = f"{one['rules']} rules" if one["rules"] is not None else "unreadable rules"
        if traffic:
            label += f", {_bytes(traffic['sent_bytes'])} out, {_bytes(traffic['received_bytes'])} in"
        if one["netvm"] is None:
            label = f"{way_out(one)}: {label}"
        yield one["name"], one["netvm"] or HOST, label, one["joined"]


def dot(qubes: list[dict[str, Any]]) -> str:
    """The graph's text. Names of qubes have no character that would need escaping in it."""
    lines = ["digraph network {", "  rankdir=LR; node [shape=box];", f'  "{HOST}" [shape=ellipse];']
    for _depth, one in tree(qubes):
        style = "" if one["state"] == "Running" else ", style=dashed"
        lines.append(f'  "{one["name"]}" [label="{one["name"]}\\n{one["ip"]}", color="#{one["label"][2:]}"{style}];')
    for source, target, label, joined in _edges(qubes):
        lines.append(f'  "{source}" -> "{target}" [label="{label}"{"" if joined else ", style=dashed"}];')
    return "\n".join([*lines, "}", ""])


def svg(qubes: list[dict[str, Any]]) -> str:
    """A picture: each qube right of what serves it, dashed what does not run."""
    places = {HOST: (0, 0)}
    boxes = [(HOST, "", "#888888", True)]
    for row, (depth, one) in enumerate(tree(qubes)):
        places[one["name"]] = (depth + 1, row)
        boxes.append((one["name"], one["ip"] or "", f"#{one['label'][2:]}", one["state"] == "Running"))
    width = max(column for column, _row in places.values()) * _COLUMN + _BOX_WIDTH + 20
    height = max(row for _column, row in places.values()) * _ROW + _BOX_HEIGHT + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">'
    ]
    for source, target, label, joined in _edges(qubes):
        (x1, y1), (x2, y2) = _corner(places[source]), _corner(places[target])
        middle = x2 + _BOX_WIDTH + (x1 - x2 - _BOX_WIDTH) // 2
        dash = "" if joined else ' stroke-dasharray="4"'
        path = f"M{x1} {y1 + _BOX_HEIGHT // 2} H{middle} V{y2 + _BOX_HEIGHT // 2} H{x2 + _BOX_WIDTH}"
        out.append(f'<path d="{path}" fill="none" stroke="black"{dash}><title>{label}</title></path>')
        out.append(f'<text x="{x1}" y="{y1 - 4}" font-size="10">{label}</text>')
    for name, address, color, running in boxes:
        x, y = _corner(places[name])
        dash = "" if running else ' stroke-dasharray="4"'
        out.append(
            f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" fill="white" stroke="{color}" '
            f'stroke-width="2"{dash}/>'
        )
        out.append(f'<text x="{x + 8}" y="{y + 18}">{name}</text><text x="{x + 8}" y="{y + 34}">{address}</text>')
    return "\n".join([*out, "</svg>", ""])


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    return place[0] * _COLUMN + 10, place[1] * _ROW + 14
