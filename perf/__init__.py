"""`python -m perf`: how fast the server is on this machine, beside other programs on the same bytes.

    table                              all measures and claims, and the judgement of figures by claims
    studies answers pixels archive     the code of the groups of measures
    run servers clients bodies         their parts
    results publish                    figures: stored, compared, shown

Rules: subjects that are compared run in alternation in one run. A peer that is not installed has a row with
that reason. A claim is a measure with a bound; the exit status says whether all claims hold.
"""
