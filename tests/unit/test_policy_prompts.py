"""Questions of the policy to a person: connected prompters, a program, silence, what changes meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.qrexec import ask as asking
from casemate.qrexec.rate import Rate
from tests.builders import within
from tests.fakes.broker import ALLOW, DENY, POLICY, Peer, World, run


def test_a_question_and_its_answer(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        for target, reply, expected in (
            ("vault", "allow:vault", ALLOW),
            ("vault", "deny", DENY),
            ("vault", "allow:dvm", DENY),  # not in the list
            ("vault", "allow:", DENY),
            ("vault", "yes", DENY),
            ("hidden", "allow:hidden", DENY),
        ):
            service = "ask.Vault" if target == "vault" else "ask.Many"
            call = asyncio.create_task(world.call(service, target))
            question = await prompter.read()
            assert question["ask"]["source"] == "work" and question["ask"]["service"] == service
            if target == "vault":
                assert question["ask"] == {
                    "source": "work", "service": "ask.Vault", "argument": "+", "targets": ["vault"],
                    "default_target": "", "icons": {"work": "appvm-blue", "vault": "appvm-black"},
                }  # fmt: skip
            prompter.write(id=question["id"], answer=reply)
            assert await call == expected, reply

    run(work, tmp_path)


def test_the_list_of_targets(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        call = asyncio.create_task(world.call("ask.Many", ""))
        question = (await prompter.read())["ask"]
        # Neither the caller nor hidden qubes; the one far away, as it has a relay; the default is the rule's.
        assert question["targets"] == ["@dispvm:dvm", "away", "dvm", "fails", "relay", "vault"]
        assert question["default_target"] == "vault"
        prompter.close()
        assert await call == DENY

    run(work, tmp_path)


def test_without_a_prompter_or_in_silence_the_answer_is_no(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        assert await world.call("ask.Vault") == DENY
        prompter = await Peer.at(world.settings.prompt_socket)
        assert await world.call("ask.Vault") == DENY  # after 0.2 s
        question = await prompter.read()
        assert await prompter.read() == {"withdrawn": question["id"]}
        prompter.write(id=question["id"], answer="allow:vault")  # too late
        call = asyncio.create_task(world.call("ask.Vault"))
        again = await prompter.read()
        prompter.write(id=question["id"], answer="allow:vault")  # an answer to another question
        assert await call == DENY and again["id"] != question["id"]

    run(work, tmp_path, seconds=0.2)


@pytest.mark.parametrize("how", ["killed", "garbage", "long", "object"])
def test_a_prompter_that_breaks_means_no(tmp_path: Path, how: str) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        call = asyncio.create_task(world.call("ask.Vault"))
        question = await prompter.read()
        if how == "killed":
            prompter.writer.transport.abort()
        elif how == "garbage":
            prompter.writer.write(b"\xff\xfe allow:vault\n")
        elif how == "long":
            prompter.writer.write(b"x" * (asking.MAX_LINE + 1) + b"\n")
        else:
            prompter.write(id=[question["id"]], answer={"allow": "vault"})
        assert await call == DENY
        assert how == "killed" or not await prompter.read()

    run(work, tmp_path)


def test_questions_wait_for_their_turn_and_are_few(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        calls = [asyncio.create_task(world.call(f"ask.Many+{n}", "vault")) for n in range(asking.PENDING_OF_ONE)]
        first = await prompter.read()
        await world.until(lambda: len(world.prompters._open) == len(calls))
        assert await world.call("ask.Many+9", "vault") == DENY  # one too many
        assert await world.call("ask.Many+0", "vault") == DENY
        shown = [first]
        for number in range(len(calls)):
            prompter.write(id=shown[-1]["id"], answer="allow:vault")
            if number + 1 < len(calls):
                shown.append(await prompter.read())
        assert {one["ask"]["argument"] for one in shown} == {"+0", "+1", "+2", "+3"}
        assert await asyncio.gather(*calls) == [ALLOW] * 4

    run(work, tmp_path)


def test_what_has_changed_meanwhile_counts(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)

        async def asked(change: Callable[[], object]) -> bytes:
            call = asyncio.create_task(world.call("ask.Vault"))
            while "id" not in (question := await prompter.read()):
                assert question["notify"]["resolution"] == "deny"
            change()
            prompter.write(id=question["id"], answer="allow:vault")
            return await call

        assert await asked(lambda: None) == ALLOW
        assert await asked(lambda: world.file.write_text("ask.Vault * work vault allow")) == ALLOW
        for text in ("ask.Vault * work vault deny", "nonsense", "ask.Vault * work vault allow target=relay", ""):
            world.file.write_text(POLICY)
            assert await asked(lambda text=text: world.file.write_text(text)) == DENY, text
        world.file.write_text(POLICY)
        assert await asked(lambda: world.qubes.pop(2)) == DENY

    run(work, tmp_path)


def test_a_caller_that_goes_away_withdraws_its_question(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        connection = await world.connect("ask.Vault")
        question = await prompter.read()
        connection.close()
        assert await prompter.read() == {"withdrawn": question["id"]}

    run(work, tmp_path)


def test_a_program_as_prompter(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        program = world.settings.state / "prompter"

        async def answered(script: str, mode: int = 0o755) -> bytes:
            program.write_text("#!/bin/sh\n" + script)
            program.chmod(mode)
            return await world.call("ask.Vault")

        assert await answered('grep -q \'"targets": ."vault".\' && echo allow:vault') == ALLOW
        assert await answered("echo deny") == DENY
        assert await answered("echo allow:vault; exit 1") == DENY
        assert await answered("printf 'allow:vault\\nallow:vault\\n'") == DENY
        assert await answered("printf 'allow:vau'") == DENY
        assert await answered(":") == DENY
        assert await answered("echo allow:vault", 0o777) == DENY
        assert await answered("echo allow:vault", 0o644) == DENY

    run(work, tmp_path)


def test_the_user_is_told_but_not_flooded(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        await world.until(lambda: world.prompters._prompters)
        world.prompters._notes = Rate(0.0, asking.NOTES_AT_ONCE)  # however long this takes
        assert await world.call("ok+a") == ALLOW
        assert await prompter.read() == {"notify": {
            "resolution": "allow", "source": "work", "service": "ok", "argument": "+a", "target": "vault",
            "suppressed": 0,
        }}  # fmt: skip
        assert await world.call("ok", "fails") == DENY
        assert (await prompter.read())["notify"]["resolution"] == "fail"
        await world.call("no.Tell")
        for _ in range(20):
            assert await world.call("nothing") == DENY
        told = 0
        with pytest.raises(TimeoutError):
            while True:
                assert (await within(0.2, prompter.read()))["notify"]["service"] == "nothing"
                told += 1
        assert told == asking.NOTES_AT_ONCE - 2

    run(work, tmp_path)
