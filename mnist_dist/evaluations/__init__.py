"""What is known of a model once it is evaluated.

`split_predictions` has what models say, `classification_report` the figures,
`evaluation_records` keeps them as JSON and in TensorBoard, `checkpoint_watch` finds
what a running training leaves to evaluate.
"""
