"""Weights of single layers: out of whatever holds them, into whatever takes them.

`layer_weights` is what notebooks use: one layer's arrays, and one Keras layer.
`weight_sources` reads runs, checkpoints, SavedModels and files (`layer_files`),
`transplant` fits layers into another model, `layer_differences` compares two.
"""
