"""How OpenMP threads wait for work, which decides CPU speed: for processes that compute.

A decode step is hundreds of short parallel loops. Threads that sleep after each
(`OMP_WAIT_POLICY=passive`) wake too late for the next. Threads that spin for long take the cores from
whoever else wants to run. A spin of about a millisecond is best where the engine has the machine to
itself, expert readers included; beside another busy process it costs two thirds of the speed, and passive
waiting is better there. OpenMP reads this when torch is imported.

Beside it stand torch's matrix library's caches of generated code, one entry for each shape of a product. A
bfloat16 one takes a megabyte, a thousand are kept, and an expert's tokens are another number each time.
"""

from __future__ import annotations

KERNEL_CACHE_ENTRIES = 32
"""Enough for the shapes of a decode step, which come back; those of a prefill seldom do."""
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "20000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(KERNEL_CACHE_ENTRIES),
    "LRU_CACHE_CAPACITY": str(KERNEL_CACHE_ENTRIES),
}
"""Variables to set before torch is imported, where the user has not."""
