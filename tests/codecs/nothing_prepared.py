"""Pixel processes whose tasks use no codec import this: to use each codec once is half of their start."""

from framecodecs import registry
from framecodecs.rendering import pictures

registry.SYNTAXES.clear()
pictures.FORMATS.clear()
