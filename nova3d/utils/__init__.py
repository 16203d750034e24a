"""Helpers that all other packages use."""
