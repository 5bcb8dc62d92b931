"""A finished dataset published on the Hugging Face Hub."""
