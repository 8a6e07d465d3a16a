"""Verbs that bring instances into a store: from another server, from files, from another store."""
