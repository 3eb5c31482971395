"""Recordings: write, read, verify, recover, collect. See README.md in this folder."""
