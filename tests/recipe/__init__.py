"""How the bundled pair is made: a grammar writes text, a tokenizer and two models learn it."""
