"""Many configs: each is exported with seeded weights and proven, in a process of its own."""
