"""The tiny model pair, its prompts, tasks and texts, which let every command run offline (made by `tests/recipe/`)."""
