"""The models that remediations leave in the model store: their cards, the room they take, and when they go."""
