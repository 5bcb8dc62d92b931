"""Watches a run from inside: metrics, notifications, its end."""
