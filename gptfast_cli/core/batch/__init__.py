"""Many prompts from one file: rows in, answers side by side, records out."""
