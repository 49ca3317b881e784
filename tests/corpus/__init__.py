"""Bad input, by family: small generators with an id, the bytes, and what must come of them."""
