"""framecodecs: DICOM frames in, DICOM frames out. Knows pixels; knows nothing of HTTP, files, datasets or
streamsrv.
"""
