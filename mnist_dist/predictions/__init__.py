"""Classifying files with a SavedModel.

In the order of the data: `image_files` reads batches (`pictures` decodes them),
`digit_images` makes them look as MNIST's, `classifier` asks the model,
`prediction_formats` prints.
"""
