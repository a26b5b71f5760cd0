"""From files to decoded images. What command lines need to know of it without importing NumPy or OpenCV:"""

FITS = ("squash", "crop", "pad")  # how an image becomes a square: see images.fit_square()
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048  # the cnn halves an image three times
