"""Readers: one file for each format that collections come in."""
