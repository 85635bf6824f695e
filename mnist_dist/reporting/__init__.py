"""What runs have recorded, side by side. No TensorFlow is needed."""
