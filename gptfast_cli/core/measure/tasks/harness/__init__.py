"""Tasks of lm-evaluation-harness, which the `eval` extra installs: nothing else imports what is in here."""
