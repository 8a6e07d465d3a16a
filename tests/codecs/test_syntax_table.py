"""The table for documentation has a row for each syntax and library, and says what the registry does."""

from frame_makers import BIG, J2K, LITTLE, RLE

from framecodecs import syntax_table
from framecodecs.libraries import BUILT_IN, LIBRARIES
from framecodecs.registry import SYNTAXES


def test_a_row_a_syntax():
    lines = syntax_table.syntaxes_markdown().splitlines()
    assert len(lines) == len(SYNTAXES) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[1] for line in lines[2:]] == list(SYNTAXES)


def test_what_rows_say():
    assert syntax_table.cells(SYNTAXES[LITTLE])[4:] == ("built in", "built in")
    assert syntax_table.cells(SYNTAXES[BIG])[4:] == ("built in", "-")
    assert syntax_table.cells(SYNTAXES[RLE])[2:] == (
        "image/dicom-rle",
        "no",
        "pylibjpeg-rle",
        "pylibjpeg-rle",
    )
    assert syntax_table.cells(SYNTAXES[J2K])[4] == "imagecodecs, pylibjpeg-openjpeg"
    assert syntax_table.cells(SYNTAXES["1.2.840.10008.1.2.4.102"])[4:] == ("passes through", "-")


def test_a_row_a_library():
    text = syntax_table.libraries_markdown()
    assert all((f"| {name} |" in text) == (name != BUILT_IN) for name in LIBRARIES)
