"""What train.py calls: phases, state, batches, saving, calibration."""
