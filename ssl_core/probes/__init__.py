"""Evaluating a representation without its pretext task; see README.md."""
