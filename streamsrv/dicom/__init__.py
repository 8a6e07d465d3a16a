"""DICOM without sockets, files or an index: tags, transfer syntaxes, Part 10, frames, DICOM JSON and XML."""
