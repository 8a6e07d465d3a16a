"""The audit trail: which principal searched, read, stored and deleted which study (DICOM PS3.15 A.5).

Sans-IO: entries, chain, messages. Files: trail, reading.
"""
