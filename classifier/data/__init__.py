"""The data: images found in folders, decoded, kept and split. Command lines read these bounds without NumPy or OpenCV."""

FITS = ("squash", "crop", "pad")  # how an image becomes a square: see images.fit_square()
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048  # pixels: the cnn halves an image three times
MAX_PIXELS = 178_956_970  # a file of a few kilobytes can claim billions; Pillow refuses a "decompression bomb" at the same
