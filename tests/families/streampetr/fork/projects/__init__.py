"""A repository's own `projects`, of the same name as that of this checkout."""
