"""Experiments: files that say which models somebody wants, and the locks that say which they got."""
