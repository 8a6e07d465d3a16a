"""OpenID Connect as a client sees it: the documents of an issuer, requests to it, and its keys in memory that
the processes of a server share."""
