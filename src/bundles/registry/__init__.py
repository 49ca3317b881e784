"""Registry verbs: read cards, look bundles up, list them."""
