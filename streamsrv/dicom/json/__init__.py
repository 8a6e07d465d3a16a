"""DICOM JSON (PS3.18 Annex F): written from a dataset, read, and encoded as a dataset."""
