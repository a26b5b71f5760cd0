"""What every room stands on: it knows nothing of images, networks or runs."""
