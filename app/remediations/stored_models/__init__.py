"""The models that remediations store in the model store: their cards, the space they take, and their deletion."""
