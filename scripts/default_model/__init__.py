"""The stages of scripts/train_default_model.py, each of which leaves its result in a cache."""
