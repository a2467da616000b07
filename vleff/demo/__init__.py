"""`vleff demo`: a small trained model and held-out questions, so that accuracy, speed and pictures need no network."""
