"""`python -m perf` (or `make perf`): how fast the server is on this machine, beside others on the same bytes.

    data      request bodies made of DICOM instances, generated while they are sent
    servers   streamsrv, nginx and Orthanc, started on loopback with folders of their own; their memory
    load      clients that cost less than what they measure: sendfile, MSG_TRUNC, wrk
    measures  large bodies in and out, and the index
    small     rates and latency of small answers
    memory    the promise of bounded memory
    pixels    frames that have to be made
    report    JSON, table and plot in perf/results/

Rules of this room
- Whatever is compared runs in alternation in the same run; absolute figures travel badly between machines.
- Peers that are not installed get a row that says so.
- A claim is a row with a limit: it holds or it does not, and the exit code says so.
"""
