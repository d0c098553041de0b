"""What an arm is: a description that travels to a process of its own, and there becomes a loaded model."""

from __future__ import annotations

from typing import Protocol, TypeVar

from pgmoe.bench.job import Answer, Job, Place, Task

TaskT_contra = TypeVar("TaskT_contra", bound=Task, contravariant=True)
AnswerT_co = TypeVar("AnswerT_co", covariant=True)
TaskT = TypeVar("TaskT", bound=Task)
AnswerT = TypeVar("AnswerT")


class AnyLoadedArm(Protocol[TaskT_contra, AnswerT_co]):
    """A loaded model. One task at a time, always in the same thread."""

    def warm_up(self, job: TaskT_contra) -> AnswerT_co:
        """Reach the state that is to be measured; called once, before any `answer`."""
        ...

    def answer(self, job: TaskT_contra) -> AnswerT_co:
        """Do a job; nothing computed for an earlier one may be used again."""
        ...

    def files(self) -> list[str]:
        """Files of its own that hold weights, besides the checkpoint."""
        ...

    def close(self) -> None:
        """Stop threads and remove files."""
        ...


class AnyArm(Protocol[TaskT_contra, AnswerT_co]):
    """A way to run a checkpoint. Plain data: it is pickled."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        ...

    @property
    def most_tokens(self) -> int | None:
        """Measure at most so many tokens, for arms that take minutes; None: as many as the others."""
        ...

    def open(self, place: Place) -> AnyLoadedArm[TaskT_contra, AnswerT_co]:
        """Load. Called once, in the arm's own process. May raise whatever its library raises."""
        ...


Arm = AnyArm[Job, Answer]
LoadedArm = AnyLoadedArm[Job, Answer]
"""Those that answer one prompt at a time."""
