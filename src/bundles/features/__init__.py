"""Features of a frozen encoder: computed once, stored, read in every epoch.

``extract`` computes them, on this machine or on many; ``store`` is the folder that holds them; ``cached``
lets a model train on what is stored. ``inputs`` reads datasets, ``encode`` asks the model.
"""
