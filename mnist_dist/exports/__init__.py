"""What leaves a run for others to use: SavedModels, .keras and .tflite files.

`saved_model` and `model_files` write, each by the same course: to a staging name
(`staging`), read again and compared (`verification`), with a card (`model_card`) and
warm-up requests (`warmup_requests`), and only then under its name.
"""
