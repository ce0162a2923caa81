"""Tasks: questions put to a model, its answers marked, and the marks added up."""
