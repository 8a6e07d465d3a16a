"""streamsrv: a DICOMweb server that streams imaging studies of any size in bounded memory."""

__version__ = "0.1.0"
