"""The wattkeeper command.

Before anything loads NumPy, its linear algebra is told to use one thread: our matrices are small, work is spread over
processes instead, and threads of OpenBLAS that wait spin for each other (on two cores training took more than four
times as long). Who has set the variable already keeps the setting. Processes that are started later inherit it.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
