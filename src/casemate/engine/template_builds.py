"""Which templates are being built: how far each is, its log, and how to cancel it.

The record is of this process. A build ends with the daemon, and leaves entries of the cache that are whole or none; the
next daemon knows nothing of it, and who asked for it is told by the end of the call.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from casemate.host.build_steps import KERNEL, STEPS, BuildReport
from casemate.model.domain import Domain
from casemate.wire.api_event import ApiEvent
from casemate.wire.errors import CasemateError, InUseError, NoBuildError, printable
from casemate.wire.events import TemplateBuildProgress
from casemate.wire.recipe import Recipe

MAX_BUILDS = 4
"""Limit of templates (builds): under way at once. Each takes up to a gigabyte of memory, and a processor."""
KEPT_LINES = 200
"""Limit of templates (lines): kept of the log of one build. A build says about thirty."""
MAX_LINE = 300
"""Limit of templates (characters): one line of the log of a build."""
KEPT_BUILDS = 10
"""Limit of templates (builds): remembered after their end."""


class Builder(Protocol):
    """Makes templates."""

    async def install(self, name: str, recipe: Recipe, report: BuildReport) -> None:
        """Make a template of a recipe."""

    async def rebuild(self, name: str, fresh: bool, report: BuildReport) -> None:
        """Put an image of its recipe into a halted template: the newest that there is, or with ``fresh`` a new one."""

    def recipe(self, template: Domain) -> Recipe:
        """What a template was built from; RecipeNotFoundError where nobody knows."""


class Build:
    """One build, as its report and as what others are told of it. Times are seconds since the epoch."""

    def __init__(self, name: str, say: Callable[[ApiEvent], None]) -> None:
        self.name = name
        self.started = time.time()
        self.finished: float | None = None
        self.why = ""
        """Why it failed; empty for one that goes on or went well."""
        self.step = 0
        """How many of STEPS have ended."""
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._say = say

    def line(self, text: str) -> None:
        """Keep a line of the log, printable and of a bounded length."""
        self.lines.append(printable(text, MAX_LINE))
        self._tell()

    def ended(self, step: str) -> None:
        """Note that a step, and all before it, have ended."""
        self.step = max(self.step, STEPS.index(step) + 1)
        self._tell()

    def finish(self, why: str) -> None:
        """It is over."""
        self.finished, self.why = time.time(), printable(why, 1000)
        self._tell()

    @property
    def lasts(self) -> bool:
        """Whether it is too late to cancel: what is made from now on is the template."""
        return self.step > STEPS.index(KERNEL)

    def facts(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "name": self.name, "started": self.started, "finished": self.finished, "why": self.why, "step": self.step,
            "steps": list(STEPS), "log": list(self.lines), "cancellable": self.finished is None and not self.lasts,
        }  # fmt: skip

    def _tell(self) -> None:
        self._say(TemplateBuildProgress(template=self.name, progress=f"{100 * self.step / len(STEPS):.0f}"))


class TemplateBuilds:
    """Runs builds, at most MAX_BUILDS and one of a name at a time. Owns their records."""

    def __init__(self, builder: Builder, say: Callable[[ApiEvent], None]) -> None:
        self._builder = builder
        self._say = say
        self._running: dict[str, tuple[Build, asyncio.Task[object]]] = {}
        self._over: deque[Build] = deque(maxlen=KEPT_BUILDS)

    async def install(self, name: str, recipe: Recipe) -> None:
        """Make a template of a recipe; returns when it is made."""
        await self._run(name, lambda build: self._builder.install(name, recipe, build))

    async def rebuild(self, name: str, fresh: bool) -> None:
        """Put an image of its recipe into a halted template; returns when that is done."""
        await self._run(name, lambda build: self._builder.rebuild(name, fresh, build))

    def recipe(self, template: Domain) -> Recipe:
        """What a template was built from; RecipeNotFoundError where nobody knows."""
        return self._builder.recipe(template)

    def builds(self) -> list[dict[str, object]]:
        """Those under way, then those that ended last, the newest first."""
        return [one.facts() for one in (*(build for build, _ in self._running.values()), *reversed(self._over))]

    def cancel(self, name: str) -> None:
        """End a build that has not come to its last step; NoBuildError where there is none, InUseError if it has."""
        if name not in self._running:
            raise NoBuildError(f"No template {printable(name, 40)!r} is being built")
        build, task = self._running[name]
        if build.lasts:
            raise InUseError(f"{name} is built and is being made now: that cannot be cancelled; remove it afterwards")
        task.cancel()

    async def _run(self, name: str, work: Callable[[Build], Awaitable[None]]) -> None:
        if name in self._running:
            raise InUseError(f"{name} is being built already")
        if len(self._running) >= MAX_BUILDS:
            raise InUseError(f"{MAX_BUILDS} templates are being built; wait for one of them")
        task = asyncio.current_task()
        assert task is not None
        build = Build(name, self._say)
        self._running[name] = build, task
        why = "It was broken off"
        try:
            await work(build)
            build.ended(STEPS[-1])
            why = ""
        except asyncio.CancelledError:
            if task.cancelling() == 0:
                raise
            task.uncancel()
            why = "It was cancelled"
            raise CasemateError(f"The build of {name} was cancelled") from None
        except CasemateError as error:
            why = str(error)
            raise
        finally:
            del self._running[name]
            self._over.append(build)
            build.finish(why)
