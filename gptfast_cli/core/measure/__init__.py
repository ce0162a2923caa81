"""What a run cost and what it was worth, in numbers that are never mixed."""
