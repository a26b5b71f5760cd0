"""Tools for the developers of this project: python -m tools.NAME"""

import classifier  # noqa: F401  sets what OpenCV reads when it is imported
