"""`python -m perf`: how fast the server is on this machine, beside other programs on the same bytes.

    table                 all measures and claims
    studies answers shared pixels searches scale     the code of the groups of measures
    run servers clients flood bodies                 their parts
    results claims publish                           figures: stored, judged, shown

Rules: subjects that are compared run in alternation in one run. A peer that is not installed has a row with
that reason. A claim is a measure with a bound; the exit status says whether all claims hold.
"""
