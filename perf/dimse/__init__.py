"""Measures of DIMSE: C-STORE, C-FIND and C-GET beside Orthanc and storescp."""
