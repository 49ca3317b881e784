"""The one place where registry, sources, builders and freezing meet."""

from bundles.assemble.into import load_into
from bundles.assemble.model import forward_costs, get_model, plan

__all__ = ["forward_costs", "get_model", "load_into", "plan"]
