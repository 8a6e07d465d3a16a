"""Segments as objects of an S3-compatible bucket: one object a transaction, written once and never changed.

Needs the optional packages of `[cluster]`. A process without a bucket does not load this room.
"""
