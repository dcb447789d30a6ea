"""What is trained: random bits, projections R^d -> R^D, the model held in a subspace, the saved adapter."""
