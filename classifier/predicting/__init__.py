"""Predicting: a finished run, its answers, and how good they are."""
