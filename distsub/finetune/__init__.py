"""One training: from a trial to its observation, and trajectories."""
