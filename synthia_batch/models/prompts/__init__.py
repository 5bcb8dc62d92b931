"""System messages, prompt formats, and rendering prompts to token ids."""
