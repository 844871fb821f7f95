"""Names of 0.2 that families of other packages import; they are in `families.common` now."""
