"""Frozen values that every other package shares."""
