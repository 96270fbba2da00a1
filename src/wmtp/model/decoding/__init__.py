"""Decoding with the model's own heads; ``generate.py`` beside this folder is the way in."""
