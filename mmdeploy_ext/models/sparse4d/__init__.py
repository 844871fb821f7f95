"""Sparse4D v3 at test time: instances of objects that are refined, remembered and tracked."""
