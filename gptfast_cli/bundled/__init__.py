"""The tiny model pair and its prompts, data that lets every command run offline; `recipe/` makes all of it."""
