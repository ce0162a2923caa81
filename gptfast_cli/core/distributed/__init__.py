"""One model on several devices: how its weights are divided."""
