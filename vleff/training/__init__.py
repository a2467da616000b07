"""Training that several methods share."""
