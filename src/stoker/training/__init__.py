"""Training of draft heads: text that the target itself generates, its hidden states, the head, its report."""
