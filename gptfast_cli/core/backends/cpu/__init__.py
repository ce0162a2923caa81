"""The CPU engine: a decoder's whole step as one native call, compiled on the machine that runs it.

`native/` holds the C++ code, `compiler` makes a library of it once for each machine, `library` speaks to it in C's
types, and `engine` is a model that decodes with it.
"""
