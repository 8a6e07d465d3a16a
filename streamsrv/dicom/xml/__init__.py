"""The Native DICOM Model (PS3.19 A.1): written from DICOM JSON, and converted to it."""
