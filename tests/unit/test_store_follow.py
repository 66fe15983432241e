"""A store follows its file: whatever another program changes, what is served is what a new reader reads."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from casemate.store import reader, writer
from casemate.store.store import Store
from casemate.wire.errors import StoreError
from tests.builders import uuid


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qubes.xml"


_TEXT = 'name="memory">400<'
_X = '<feature name="x'
_LABEL = '<label id="label-99" color="0x000001">x</label></labels>'
_EDITS = {
    "a feature": lambda text, n: text.replace('name="n">', f'name="n">{n}', 1),
    "a property": lambda text, n: text.replace(_TEXT, f'name="memory">{400 + n % 9}<', 1),
    "the admin's feature": lambda text, n: text.replace("<features/>", f'<features>{_X}{n}"/></features>', 1),
    "a volume": lambda text, n: text.replace('revisions_to_keep="', f'revisions_to_keep="{n % 9 + 1}', 1),
    "another UUID": lambda text, n: text.replace(str(uuid(11)), str(uuid(1000 + n)), 1),
    "a UUID twice": lambda text, n: text.replace(str(uuid(11)), str(uuid(12)), 1),
    "a name twice": lambda text, n: text.replace(">a1<", ">a2<", 1),
    "another name": lambda text, n: text.replace(">a1<", f">b{n}<", 1),
    "another class": lambda text, n: text.replace('class="AppVM"', 'class="DispVM"', 1),
    "a label that is not there": lambda text, n: text.replace('name="label">red', 'name="label">mauve', 1),
    "a template that is not there": lambda text, n: text.replace('name="template">base', 'name="template">none', 1),
    "an unknown element": lambda text, n: text.replace("    </domain>\n", f"    <x{n}/></domain>\n", 1),
    "something between the qubes": lambda text, n: text.replace("    </domain>\n", "    </domain>\n<y/>", 1),
    "an entity": lambda text, n: text.replace('name="n">', 'name="n">&amp;', 1),
    "cut off": lambda text, n: text[: len(text) - n],
    "more at the end": lambda text, n: text + "<z/>",
    "next-qid": lambda text, n: text.replace('next-qid="', f'next-qid="{n % 9 + 1}', 1),
    "a small next-qid": lambda text, n: re.sub('next-qid="[0-9]+"', 'next-qid="1"', text),
    "another generation": lambda text, n: text.replace('generation="', f'generation="{n % 9 + 1}', 1),
    "a comment": lambda text, n: text.replace("<domains>", "<domains><!-- <domain> -->", 1),
    "a label more": lambda text, n: text.replace("</labels>", _LABEL),
}  # fmt: skip


def _seen(store: Store) -> bytes | str:
    """What a store shows of its file: everything, or its complaint."""
    try:
        return writer.write(store.snapshot().copy())
    except StoreError as error:
        return str(error)


def test_what_a_reader_follows_is_what_a_new_reader_reads(path: Path) -> None:
    """Any edits in any order: a store that knew the version before sees the same, or fails with the same words."""
    with Store(path).write() as transaction:
        system = transaction.system
        system.add("TemplateVM", "base", uuid=uuid(10))
        for number, name in enumerate(("a1", "a2", "a3"), 11):
            qube = system.add("AppVM", name, uuid=uuid(number), template="base")
            qube.memory, qube.features["n"] = 400, "1"
    sound = path.read_text()
    chance = random.Random(5)
    different = 0
    for round_number in range(400):
        path.write_text(sound)
        follower = Store(path)
        follower.snapshot()
        text = sound
        for step in range(3):
            text = _EDITS[chance.choice(list(_EDITS))](text, round_number + step + 1)
            new = path.with_name("new")
            new.write_text(text)
            new.replace(path)
            expected = _seen(Store(path))
            assert _seen(follower) == expected
            different += isinstance(expected, bytes)
            if isinstance(expected, str):
                text = sound
    assert 300 < different < 1200


def test_a_change_of_one_qube_is_followed_without_reading_the_others(path: Path, monkeypatch: MonkeyPatch) -> None:
    other, store = Store(path), Store(path)
    with other.write() as transaction:
        transaction.system.add("StandaloneVM", "a", uuid=uuid(1))
        transaction.system.add("StandaloneVM", "b", uuid=uuid(2))
    before = store.snapshot()
    read = reader.read
    whole: list[str] = []
    monkeypatch.setattr(reader, "read", lambda *words: whole.append("") or read(*words))
    for number in range(20):
        other.change(lambda system, number=number: system.domains["a"].features.set("n", "9" * number))
        assert store.snapshot().domains["a"].features["n"] == "9" * number
        assert store.snapshot().domains["b"].state is before.domains["b"].state
        assert before.domains["a"].features.get("n") is None
    assert whole == []
    other.change(lambda system: system.add("StandaloneVM", "c", uuid=uuid(3)) and None)
    assert "c" in store.snapshot().domains and whole == [""]
