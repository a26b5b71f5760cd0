"""Several devices and several machines: all that there is to know of them."""
