"""Train language models that predict several tokens ahead, with a weight on every target."""

__version__ = "0.1.0"
