"""What a training leaves: a folder, a record, a history, checkpoints."""
