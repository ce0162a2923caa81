"""Quantising: how the integers of a quantised weight are chosen. Pure functions: tensors in, weights out."""
