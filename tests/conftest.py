"""For all tests: Hypothesis sets no time limit for one example, because the machine may be busy with other work."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("casemate", deadline=None)
settings.load_profile("casemate")
