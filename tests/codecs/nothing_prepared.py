"""Pixel processes whose tasks need no library import this: to prepare libraries is half of their start."""

from framecodecs import registry
from framecodecs.libraries import LIBRARIES
from framecodecs.rendering import pictures

for table in (LIBRARIES, registry.SYNTAXES, pictures.FORMATS):
    table.clear()
