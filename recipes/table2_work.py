"""The experiment's runs, by this process or by several beside each other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pgmoe.bench.quality_result import QualityRun
from pgmoe.errors import PgmoeError
from recipes.table2_folder import Experiment
from recipes.table2_plan import Plan
from recipes.table2_run import carry_out

WORK = "work"
"""The command that a process of `work_together` runs."""
Told = Callable[[QualityRun, int, int], None]
"""Called with a run that is done, the number of those that are, and of all."""
_PATIENCE_S = 0.5


def work(plan: Plan, experiment: Experiment, told: Told) -> None:
    """Carry out what is not done and nobody else has. Raises as `finetune` does."""
    runs = plan.runs()
    for run in runs:
        with experiment.claim(run.name) as ours:
            if ours and run.name not in experiment.rows():
                row = carry_out(run, plan, experiment)
                told(row, len(experiment.rows()), len(runs))


def work_together(plan: Plan, experiment: Experiment, num_workers: int) -> None:
    """Have processes of one thread each do all runs; they tell of it on stderr.

    All are ended when this one is interrupted. Raises PgmoeError if one failed; why stands on stderr.
    """
    command = [sys.executable, "-m", "recipes.table2", WORK, str(experiment.folder)]
    root = Path(__file__).parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    # Threads of PyTorch that wait for work must not keep the other process from its core.
    own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": path}
    workers = [subprocess.Popen(command, env={**os.environ, **own}) for _ in range(num_workers)]
    try:
        while any(worker.poll() is None for worker in workers):
            time.sleep(_PATIENCE_S)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    missing = [run.name for run in plan.runs() if run.name not in experiment.rows()]
    if missing:
        raise PgmoeError(
            f"{len(missing)} runs are not done, e.g. {missing[0]}; call again to go on with them"
        )
