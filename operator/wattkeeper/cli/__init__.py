"""The wattkeeper command.

Before anything loads NumPy, its linear algebra is told to use one thread: our matrices are small, work is spread over
processes instead, and on a machine with many cores idle threads of OpenBLAS spin for each other (training took three
times as long). Who has set the variable already keeps the setting. Processes that are started later inherit it.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
