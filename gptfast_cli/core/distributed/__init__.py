"""Tensor parallelism over processes: launching ranks, and their process group."""
