"""Many configs, each exported with seeded weights and proven in its own process."""
