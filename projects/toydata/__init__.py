"""Seeded weights of toys."""
