"""The nouns: frozen values that every other part speaks of. Standard library only."""
