"""A finished dataset in the shapes that other programs read.

A finished dataset published on the Hugging Face Hub.
"""
