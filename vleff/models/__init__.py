"""Knowledge of transformers classes: one adapter a model family, in a registry."""
