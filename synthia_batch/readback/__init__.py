"""A run read back from its directory: typed samples, and what they come to in numbers."""
