"""Training and evaluation of models: data, metrics. Never imports the store."""
