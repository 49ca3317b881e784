"""Builders on torchaudio 2.11, which is imported when a model is built and not before."""
