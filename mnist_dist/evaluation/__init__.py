"""Figures of each class, records of evaluations, following a run."""
