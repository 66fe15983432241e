"""What each tool writes with ``--json``: one declaration for each command, as JSON Schema (2020-12).

The page docs/reference/json.md is written from this, and a test on real machines holds the output of each command
against it. Within a major version keys are only added; what may come later is allowed for by each object.

One file although it is long: a table, of which each entry is read alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
NUMBER: Schema = {"type": "integer"}
BYTES: Schema = {"type": "integer", "minimum": 0, "description": "bytes"}
TRUTH: Schema = {"type": "boolean"}
DIGITS: Schema = {"type": "string", "pattern": "^-?[0-9]+$", "description": "a number, as text"}


class Output(NamedTuple):
    """A command whose output is declared. ``command`` is what comes before ``--json``, arguments in capitals."""

    command: str
    text: str
    schema: Schema


def _said(schema: Schema, text: str) -> Schema:
    return {**schema, "description": text}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object that has these keys, and may have others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required)}


def _map(values: Schema, text: str) -> Schema:
    """An object with keys of any name."""
    return {"type": "object", "additionalProperties": values, "description": text}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_PROPERTY = _object(
    {
        "value": {"type": ["string", "integer", "boolean", "null"], "description": "null: no qube, or no number"},
        "type": {"enum": ["str", "int", "bool", "vm", "label"]},
        "default": _said(TRUTH, "whether the value is the default"),
    }
)
_REPORT = _object(
    {
        "whole": _said(TRUTH, "whether all that was asked for is there, to its last byte"),
        "qubes": _list(
            _object(
                {
                    "name": TEXT,
                    "verdict": {"enum": ["whole", "damaged", "missing"]},
                    "restored_as": _said(TEXT_OR_NULL, "null: not restored"),
                    "why": _said(TEXT, "for people; empty for a whole one"),
                }
            )
        ),
        "left_out": _map(_said(TEXT, "why"), "qubes that were not restored, by name"),
        "notes": _list(TEXT),
        "error": _said(TEXT, "why the backup could not be read to its end; else empty"),
    }
)
_DEVICE = {
    **_object(
        {
            "place": _said(TEXT, "BACKEND+PORT:IDENTITY, as the Admin API writes it"),
            "backend_domain": _said(TEXT, "the qube that offers it"),
            "port_id": TEXT,
            "devclass": TEXT,
        },
        {"device_id": TEXT, "description": TEXT, "used_by": _said(TEXT, "qubes that have it, for people")},
    ),
    "additionalProperties": TEXT,
}
_VOLUME = {
    "pool": TEXT, "vid": TEXT, "size": DIGITS, "usage": DIGITS, "rw": {"enum": ["True", "False"]},
    "save_on_stop": {"enum": ["True", "False"]}, "snap_on_start": {"enum": ["True", "False"]},
    "revisions_to_keep": DIGITS, "source": TEXT,
}  # fmt: skip
_POOL = {**_object({"name": TEXT, "driver": TEXT}, {"size": DIGITS, "usage": DIGITS}), "additionalProperties": TEXT}
_TRAFFIC = _map(
    _object(dict.fromkeys(("sent_bytes", "sent_packets", "received_bytes", "received_packets"), NUMBER)),
    "by the name of an interface of the host",
)
_DROPPED = _map(_map(NUMBER, "packets by cause"), "by the name of an interface of the host")
_RULE = _object({"where": _said(TEXT, "file and line"), "text": TEXT})
_FACTS = dict.fromkeys(
    ("name", "epoch", "version", "release", "reponame", "size", "buildtime", "installtime", "license", "url", "summary",
     "description"), TEXT,
)  # fmt: skip

OUTPUTS = (
    Output(
        "qvm-ls",
        "Qubes, with a key for each column that `--fields`, `--network`, `--kernel` or `--disk` asks for. All values "
        "are texts; null is what a table shows as `-`.",
        _list({**_object({}, {"name": TEXT, "state": TEXT}), "additionalProperties": TEXT_OR_NULL}),
    ),
    Output("qvm-prefs VMNAME", "Properties of a qube.", _map(_PROPERTY, "by the name of the property")),
    Output("qvm-prefs VMNAME PROPERTY", "One property.", _PROPERTY),
    Output("qubes-prefs", "Global properties.", _map(_PROPERTY, "by the name of the property")),
    Output("qubes-prefs PROPERTY", "One global property.", _PROPERTY),
    Output("qvm-features VMNAME", "Features of a qube.", _map(TEXT, "by the name of the feature; empty means false")),
    Output("qvm-features VMNAME FEATURE", "The value of one feature.", TEXT),
    Output("qvm-tags VMNAME list", "Tags of a qube.", _list(TEXT)),
    Output("qvm-service VMNAME", "Services that are switched on or off.", _map(TRUTH, "by the name of the service")),
    Output("qvm-service VMNAME SERVICE", "Whether one service is switched on.", TRUTH),
    Output("qvm-notes VMNAME", "The notes about a qube.", _object({"name": TEXT, "notes": TEXT})),
    Output(
        "qvm-device CLASS list",
        "Devices that qubes offer, and who has them; the same for `qvm-block`, `qvm-pci`, `qvm-usb`, `qvm-mic`. What a "
        "device says of itself is under keys that begin with `_` or are not listed here.",
        _list(_DEVICE),
    ),
    Output("qvm-device CLASS info BACKEND:DEVICE", "What is known of one device.", _DEVICE),
    Output(
        "qvm-volume list",
        "Volumes of qubes.",
        _list(_object({"vm": TEXT, "volume": TEXT, **_VOLUME, "revisions": _said(TEXT, "names, between blanks")})),
    ),
    Output(
        "qvm-volume info VMNAME:VOLUME",
        "How a volume is configured.",
        _object({**_VOLUME, "revisions": _list(_said(TEXT, "oldest first"))}),
    ),
    Output("qvm-pool list", "Storage pools.", _list(_POOL)),
    Output("qvm-pool info POOL", "How a pool is configured, and its room.", _POOL),
    Output("qvm-pool drivers", "Storage drivers.", _map(_list(TEXT), "options by the name of the driver")),
    Output(
        "qvm-firewall VMNAME list",
        "Firewall rules in their order.",
        _list(
            {
                **_object(
                    {"action": {"enum": ["accept", "drop"]}},
                    {
                        "proto": {"enum": ["tcp", "udp", "icmp"]},
                        "dstports": _said(TEXT, "FIRST-LAST"),
                        "expire": _said(DIGITS, "seconds since 1970, as text"),
                    },
                ),
                "additionalProperties": TEXT,
            }
        ),
    ),
    Output(
        "qvm-template list",
        "Templates by where they are, as upstream's `--machine-readable-json`.",
        _map(_list(_object({"name": TEXT, "evr": TEXT, "reponame": TEXT})), "installed, available or extra"),
    ),
    Output(
        "qvm-template info",
        "What is known of templates, as upstream's `--machine-readable-json`.",
        _map(_list(_object(_FACTS)), "installed, available or extra"),
    ),
    Output(
        "casemate status",
        "What this host can do and which protections it lacks. Texts are for people.",
        _object(
            {
                "version": _said(TEXT, "of the daemon"),
                "host": TEXT,
                "acceleration": TEXT,
                "hypervisor": TEXT,
                "state": _said(TEXT, "directory of the state"),
                "origin": _said(TEXT, "why it is this state"),
                "running": _said(NUMBER, "qubes that run"),
                "warm images": _said(TEXT, "how many, and their size"),
                "policy": TEXT,
                "isolation": TEXT,
                "network": TEXT,
                "protections": _list(
                    _object(dict.fromkeys(("id", "what", "why", "remedy"), TEXT) | {"present": TRUTH})
                ),
                "scheduled": _list(_said(TEXT, "a scheduled backup and how its last run ended")),
            },
            {
                "stuck": TEXT,
                "disposables": TEXT,
                "no answer": _said(TEXT, "running qubes whose agents do not answer"),
            },
        ),
    ),
    Output(
        "casemate template list",
        "Templates and what they were built from.",
        _list(
            _object(
                {
                    "name": TEXT,
                    "suite": TEXT_OR_NULL,
                    "kind": TEXT_OR_NULL,
                    "built": _said(TEXT_OR_NULL, "YYYY-MM-DD HH:MM:SS, UTC"),
                    "usage": BYTES,
                    "kernel": TEXT_OR_NULL,
                    "packages": _list(TEXT),
                    "extras": _said(TRUTH, "whether its recipe has more than packages"),
                }
            )
        ),
    ),
    Output(
        "casemate policy explain SOURCE SERVICE TARGET",
        "Which rule decides about a call.",
        _object(
            {
                "source": TEXT,
                "service": TEXT,
                "argument": TEXT,
                "target": TEXT,
                "verdict": _said(TEXT, "allowed, denied or asked, with the target; for people"),
                "rule": {"anyOf": [_RULE, {"type": "null"}]},
                "near": _list(_object({"where": TEXT, "text": TEXT, "why": _said(TEXT, "why it does not fit")})),
                "change": {
                    "anyOf": [
                        _object({"line": TEXT, "file": TEXT, "before": _said(NUMBER, "a line; 0: anywhere")}),
                        {"type": "null"},
                    ],
                    "description": "a rule that would turn the decision round",
                },
            }
        ),  # fmt: skip
    ),
    Output("qubes-policy --list", "Files of the policy, by name without their ending.", _list(TEXT)),
    Output(
        "casemate net show",
        "Who reaches whom, through what.",
        _object(
            {
                "why": _said(TEXT, "why qubes have no network here; empty where they have"),
                "qubes": _list(
                    _object(
                        {
                            "name": TEXT,
                            "label": _said(TEXT, "0xRRGGBB"),
                            "state": TEXT,
                            "netvm": TEXT_OR_NULL,
                            "provides_network": TRUTH,
                            "uplink": TRUTH,
                            "uplink_by": {**TEXT_OR_NULL, "description": "pasta, card:NAME or shared:NAME"},
                            "uplink_missing": _said(TEXT, "why a running net qube has no card now; empty where it has"),
                            "ip": TEXT_OR_NULL,
                            "ip6": TEXT_OR_NULL,
                            "rules": {"type": ["integer", "null"], "description": "null: they cannot be read"},
                            "plugged": TRUTH,
                            "joined": _said(TRUTH, "whether traffic can pass now"),
                            "traffic": _TRAFFIC,
                            "dropped": _DROPPED,
                        }
                    )
                ),
            }
        ),
    ),
    Output(
        "casemate warm list",
        "Warm images, oldest first.",
        _list(
            _object(
                {
                    "key": TEXT,
                    "template": TEXT,
                    "made": _said(NUMBER, "seconds since the epoch"),
                    "used": _said(NUMBER, "seconds since the epoch"),
                    "bytes": BYTES,
                }
            )
        ),
    ),
    Output(
        "casemate snapshot list",
        "Snapshots of running qubes, oldest first.",
        _list(
            _object(
                {
                    "name": TEXT,
                    "qube": TEXT,
                    "base": _said(TEXT, "the disposable template of what goes on from it"),
                    "made": _said(NUMBER, "seconds since the epoch"),
                    "bytes": _said(NUMBER, "size on disk in bytes, without its disks"),
                }
            )
        ),
    ),
    Output(
        "casemate net stats",
        "Traffic, and what was dropped.",
        _map(_object({"traffic": _TRAFFIC, "dropped": _DROPPED}), "by the name of the qube"),
    ),
    Output(
        "casemate net explain QUBE PLACE",
        "Which rule decides whether a qube reaches a place.",
        _object(
            {
                "qube": TEXT,
                "place": TEXT,
                "verdict": {"enum": ["yes", "no", "it depends"]},
                "steps": _list(
                    _object(
                        {
                            "where": TEXT,
                            "passes": {"type": ["boolean", "null"], "description": "null: it depends"},
                            "why": TEXT,
                            "change": _said(TEXT, "what would change it; may be empty"),
                        }
                    )
                ),
            }
        ),
    ),
    Output(
        "casemate backup list REPOSITORY",
        "Backups in a repository.",
        _list(_object({"id": TEXT, "time": _said(NUMBER, "seconds since 1970"), "qubes": NUMBER, "new_bytes": BYTES})),
    ),
    Output(
        "casemate backup list REPOSITORY BACKUP",
        "Qubes of one backup.",
        _list(_object({"name": TEXT, "class": TEXT, "volumes": _map(BYTES, "sizes by the name of the volume")})),
    ),
    Output("casemate backup verify REPOSITORY", "What was found of each qube of a backup.", _REPORT),
    Output("casemate backup restore REPOSITORY", "What became of each qube of a backup.", _REPORT),
    Output(
        "casemate backup schedule",
        "Backups that this host makes by itself.",
        _list(_object({"profile": TEXT, "when": TEXT, "by": TEXT, "last_run": _said(TEXT, "for people")})),
    ),
    Output(
        "casemate interop status",
        "Places where programs written for Qubes OS look.",
        _map({"enum": ["ours", "missing", "foreign"]}, "by path"),
    ),
    Output(
        "casemate trace",
        "Calls while they happen: a line of JSON for each step.",
        _object(
            {
                "id": TEXT,
                "phase": TEXT,
                "at": {"type": "number", "description": "seconds since the call was asked for"},
                "source": TEXT,
                "service": TEXT,
                "argument": TEXT,
                "target": TEXT,
            },
            {
                "why": TEXT_OR_NULL,
                "cause": TEXT_OR_NULL,
                "final": TEXT_OR_NULL,
                "status": {"type": ["integer", "null"], "description": "exit status, with phase ended"},
            },
        ),
    ),
)


def describe(schema: Schema, name: str = "", depth: int = 0) -> list[str]:
    """A schema as lines of an outline for people."""
    indent = "  " * depth
    head = f"{indent}* `{name}`: " if name else f"{indent}* "
    text = schema.get("description", "")
    said = f": {text}" if text else ""
    if "anyOf" in schema:
        first = next(one for one in schema["anyOf"] if one.get("type") != "null")
        return [f"{head}null, or{said}", *describe(first, "", depth + 1)]
    if schema.get("type") == "array":
        items = schema["items"]
        if _plain(items):
            note = f": {items['description']}" if "description" in items else ""
            return [f"{head}list of {_kind(items)}{note}{said}"]
        return [f"{head}list of{said}", *describe(items, "", depth + 1)]
    if schema.get("type") == "object":
        lines = [f"{head}object{said}"]
        for key, value in schema.get("properties", {}).items():
            optional = "" if key in schema.get("required", ()) else " (may be missing)"
            first, *rest = describe(value, key, depth + 1)
            lines += [first.replace("`: ", f"`{optional}: ", 1), *rest]
        others = schema.get("additionalProperties")
        if others:
            lines += describe(others, "NAME", depth + 1) if not schema.get("properties") else [
                f"{indent}  * other keys: {_kind(others)}"
            ]  # fmt: skip
        return lines
    return [f"{head}{_kind(schema)}{said}"]


def _plain(schema: Schema) -> bool:
    return schema.get("type") not in ("array", "object") and "anyOf" not in schema


_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}


def _kind(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    found = schema.get("type", "object")
    return " or ".join(_WORDS.get(one, one) for one in ([found] if isinstance(found, str) else found))


def page() -> str:
    """The text of docs/reference/json.md."""
    parts = [
        "<!-- Written by `make docs` from the code: do not edit. -->",
        "# JSON of the tools",
        "Tools that list something write JSON with `--json`; those of which upstream's have `--format` take "
        "`--format json` too. Within a major version keys are only added, so ignore those that you do not know. "
        "`python -m casemate.cli.json_schemas` writes all of this as JSON Schema, by command.",
    ]
    for one in OUTPUTS:
        parts += [f"## {one.command}", one.text, "\n".join(describe(one.schema))]
    return "\n\n".join(parts) + "\n"


def schemas() -> dict[str, Schema]:
    """All schemas by command."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {one.command: {"$schema": draft, "title": f"{one.command} --json", **one.schema} for one in OUTPUTS}


if __name__ == "__main__":
    import json

    print(json.dumps(schemas(), indent=2))
