"""A finished dataset in the shapes that other programs read."""
