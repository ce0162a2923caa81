"""Tasks: questions put to a model, its answers score_answers, and the marks added up."""
