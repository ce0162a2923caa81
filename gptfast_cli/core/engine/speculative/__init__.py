"""Speculative decoding: proposers, verification, and the draft length of each round."""
