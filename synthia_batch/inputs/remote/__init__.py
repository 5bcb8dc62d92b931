"""Inputs that come over a network: web servers, buckets, the Hugging Face Hub."""
