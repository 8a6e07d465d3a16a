"""The index: one class to the outside, `index.Index`, over one LMDB environment."""
