"""Source verbs: turn a weight source into a path on this machine whose bytes are the pinned ones."""
