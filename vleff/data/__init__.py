"""Readers of the data that several methods share."""
