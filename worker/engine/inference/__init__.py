"""What a model computes from texts, in batches: continuations, given answers, likelihoods. No metric is known here."""
