"""Trained models, loaded again, and what they predict."""
