"""The engine that calls a server with an OpenAI-compatible API."""
