"""Weights of single layers: out of anything, into anything."""
