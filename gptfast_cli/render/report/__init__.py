"""The parts of the report on draft models, in the order in which they are read."""
