"""Checkpoints: a model as a folder that describes itself, where such folders are kept, and how a name finds one."""
