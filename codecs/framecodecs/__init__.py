"""framecodecs decodes, encodes and renders DICOM frames. It knows no HTTP, files, datasets or server."""
