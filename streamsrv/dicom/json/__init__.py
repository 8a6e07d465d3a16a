"""DICOM JSON (PS3.18 Annex F): written from a dataset, read, encoded again."""
