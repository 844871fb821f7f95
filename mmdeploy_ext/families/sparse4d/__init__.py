"""Sparse4D v3: instances of six cameras with a memory and track ids."""
