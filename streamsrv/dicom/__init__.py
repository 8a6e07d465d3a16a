"""DICOM without a socket, a file or an index: tags, transfer syntaxes, the Part 10 reader, frames, DICOM
JSON.
"""
