"""DICOM's own network protocol (PS3.7, PS3.8) beside HTTP: Verification, Storage and Query/Retrieve as an
SCP, Storage as an SCU.

Begin with `association`, the life of one connection. `protocol` is sans-IO: bytes in, values and bytes out.
`services` has the operations, `dialing` the associations that this server requests.
"""
