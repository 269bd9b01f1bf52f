"""What every method is written against: concepts, denoisers, edits, files, training."""
