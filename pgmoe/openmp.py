"""How OpenMP threads wait for work, which decides CPU speed: for processes that compute.

A decode step is hundreds of short parallel loops. Threads that sleep after each
(`OMP_WAIT_POLICY=passive`) wake too late for the next. Threads that spin for long take the cores from
whoever else wants to run. A spin of about a millisecond is best where the engine has the machine to
itself, expert readers included; beside another busy process it costs two thirds of the speed, and passive
waiting is better there. OpenMP reads this when torch is imported.
"""

from __future__ import annotations

ENVIRONMENT = {"GOMP_SPINCOUNT": "20000"}
"""Variables to set before torch is imported, where the user has not."""
