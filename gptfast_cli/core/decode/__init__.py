"""From logits to text: loading, the runner, sampling, the generator and when it stops."""
