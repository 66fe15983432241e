"""Values of properties as they are now: what a source outside the store says comes before what the store says.

A declaration names its source (`model.defaults.Live`), the source gives an object with the figures, and the figure is
the attribute with the property's name. So a live property without a source cannot be declared, and one that its source
does not know is an error at the first question.
"""

from __future__ import annotations

from casemate.api.context import Context
from casemate.model.defaults import Live, Source
from casemate.model.domain import Domain
from casemate.model.properties import Holder
from casemate.wire.admin import PropertyValue


def value(context: Context, holder: Holder, name: str) -> PropertyValue:
    """The property as it is now."""
    prop = holder.declaration(name)
    rule = prop.default
    if isinstance(rule, Live):
        figures = _figures(context, holder, rule.source)
        if figures is not None:
            return PropertyValue(True, prop.kind.tag, prop.kind.format(getattr(figures, name)))
    return PropertyValue(not holder.is_set(name), prop.kind.tag, holder.text(name))


def _figures(context: Context, holder: Holder, source: Source) -> object | None:
    """What a source says about a holder; None where it says nothing, as of a halted qube."""
    match source:
        case Source.MACHINE:
            return context.states.all().get(holder.name) if isinstance(holder, Domain) else None
        case Source.HOST:
            return context.host.figures()
