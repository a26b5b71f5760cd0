"""What made the tables and pictures in docs/results, one command each: python -m experiments.NAME"""

import classifier  # noqa: F401  sets what OpenCV reads when it is imported
