"""Freezing verbs: describe a module, apply a plan, undo it, report, verify."""
