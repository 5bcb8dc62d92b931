"""Engines make text from token ids. `base` is the contract; each other module is one engine."""
