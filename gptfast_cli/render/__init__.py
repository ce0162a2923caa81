"""Everything that a person sees: text on stdout, the rest on stderr, and never an escape where it is not wanted."""
