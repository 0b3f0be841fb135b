"""Fine-tuning on the twin of a resident model, giving way to serving at layer boundaries."""
