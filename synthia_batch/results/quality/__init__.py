"""Quality measures of an answer's text, and the flags based on them."""
