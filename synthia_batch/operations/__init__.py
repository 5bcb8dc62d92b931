"""One module per use case other than `run`: checks, forecasts, previews, re-runs and tuning."""
