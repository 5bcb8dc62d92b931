"""What the model is told: system messages, prompt formats, and their rendering."""
