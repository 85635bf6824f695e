"""Files -> images of the model's size."""
