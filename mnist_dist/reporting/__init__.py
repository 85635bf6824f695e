"""What runs have recorded, side by side: tables, and a page. No TensorFlow is needed."""
