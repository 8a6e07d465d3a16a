"""DICOM's own network protocol (PS3.7, PS3.8) beside HTTP: Verification, Storage and
Query/Retrieve as an SCP.

Begin with `association`, the life of one connection. `pdus`, `upper_layer`, `negotiation` and `commands` are
sans-IO: bytes in, values and bytes out.
"""
