"""What a draft model is worth: acceptance, costs, prediction, and real runs that check it."""
