"""What the project's own people run: python -m tools.NAME."""

import classifier  # noqa: F401  sets what OpenCV reads when it is imported
