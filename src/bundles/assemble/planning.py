"""Plan a draft's freeze: from the architecture alone."""

from __future__ import annotations

from bundles.assemble.draft import Draft
from bundles.spec.mode import FreezeMode
from bundles.spec.plan import FreezePlan
from bundles.spec.policy import FreezePolicy
from bundles.spec.resolve import resolve


def plan_draft(draft: Draft, request: tuple[FreezePolicy, FreezeMode], *, pretrained: bool) -> FreezePlan:
    """Return what a policy and a mode freeze and hold of a model that was only constructed."""
    from bundles.freezing.behaviour.describe import describe

    table = describe(draft.model)
    loaded = [row.name for row in table.parameters if pretrained and row.name not in draft.fresh]
    return resolve(*request, table, draft.groups(), loaded)
