"""Tasks: requests to a model, their answers, and scores."""
