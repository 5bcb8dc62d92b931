"""Exports a complete dataset: files for other programs, and a repository on the Hugging Face Hub."""
