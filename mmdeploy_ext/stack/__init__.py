"""The frozen libraries: patches for their current dependencies, and what is wrong with an environment."""
