"""Verified, resumable download: one engine for the bytes, a file for each kind of source, a file for each layout."""
