"""How much each layer matters: scores by gradient, size or relevance."""
