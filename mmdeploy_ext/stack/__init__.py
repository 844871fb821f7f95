"""The frozen libraries: patches for what they rest on today, and what is wrong with an environment."""
