"""Verbs that bring things to a store or take them away."""
