"""What is known of a model once it is evaluated.

`classification_report` has the figures, `evaluation_records` keeps them as JSON and in
TensorBoard, `checkpoint_watch` finds what a running training leaves to evaluate.
"""
