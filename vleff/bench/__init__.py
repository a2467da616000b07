"""`vleff bench`: real models on real paragraphs and photos, dense and accelerated, measured side by side."""
