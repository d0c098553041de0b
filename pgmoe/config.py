"""What an engine is told: one frozen, typed object. Unknown keys are errors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pgmoe.errors import ConfigError


class EngineConfig(BaseModel):
    """Options of one engine. Derived values are never written back."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    """Local folder (`~` is expanded) or hub id of a Hugging Face checkpoint in safetensors, or of a pack."""

    served_model_name: str | None = None
    """Name in API answers and metrics; the folder's or hub id's last part where None."""

    device: str = "auto"
    """`auto` (the accelerator if there is one), `cpu`, `cuda`, `cuda:1`, …"""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type. `auto` is the type the experts are stored in; no other is accepted for them."""

    device_memory: str | int = "100%"
    """Bytes on the device: `600MiB` covers dense weights, KV cache, workspace and expert slots together;
    `50%` is slots for that share of the experts' bytes, all else beside it. On a CPU an input
    embedding that no other layer uses stays in its file and does not count."""

    kv_memory: str | int = "auto"
    """Bytes of the pool of keys and values that all running requests share; who finds no block left must
    wait, or are computed anew later. `auto`: room for `max_running` sequences of 2048 tokens, or of
    `max_model_len` if that is less; beside a `device_memory` in percent for one of `max_model_len` at least;
    within one in bytes halved until it is at most a quarter of what the other parts leave, but no less than
    one sequence of 256 tokens takes."""

    kv_swap_memory: str | int = 0
    """Bytes of the host's memory for keys and values of requests that have to give way to others, so that
    they go on where they were; used where moving them there and back takes less time than computing them
    anew. 0: they are always computed anew. Of no use where each sequence has a cache of its own: none of
    these gives way."""

    host_memory: str | int = "auto"
    """Bytes of RAM for copies of experts between disk and device, `600MiB` or `50%` of the experts' bytes;
    the others are read from disk, all of them with `0`. `auto`: as many as most of the free RAM holds on an
    accelerator, none on a CPU. Beside an accelerator there is room for `num_readers` + 2 at least, since what
    is read passes through it."""

    pack: Literal["off", "auto"] = "off"
    """`auto`: a checkpoint that is no pack is packed into `pack_folder` first, once; that takes its size
    again on disk. A pack is served as one either way."""

    pack_folder: str = "~/.cache/pgmoe/packs"
    """Where `pack: auto` keeps its packs (`~` is expanded)."""

    verify_pack: bool = True
    """Compare a pack's experts with their checksums once: those copied to host memory at the start as they
    come, the others in the background. One that is found corrupt is logged and not read any more."""

    policy: str = "prospect"
    """Eviction policy of the expert slots: `prospect`, `lru`, `lfu` or `lifo`. With a slot for each expert it
    is not asked."""

    gating: str = "auto"
    """How coming experts are known before they are asked for; it never changes an answer. `pregated` is told
    by a model that selects them ahead, `speculative` and `statistical` guess, `on_demand` waits,
    `prefetch_all` fetches all, `oracle` replays `gating_trace`. `auto`: `pregated` where that can be, else
    `speculative`."""

    whole_layers: Literal["auto", "off"] = "off"
    """Where the gating `speculative` guesses: `auto` fetches all missing experts of the next layer in steps
    of so many tokens, of prompts most often, that nearly all of them will be used; the link need not wait for
    the selection. It has not paid on a CPU with a disk; no GPU has run it yet."""

    gating_trace: str | None = None
    """File of a recorded routing, for the gating `oracle`, which replays it."""

    emulated_link: str | None = None
    """For tests and figures, on a CPU: all experts lie in RAM, and one becomes visible when a serial link of
    this bandwidth, such as `25GB/s`, would have delivered it. Nothing is copied."""

    emulated_latency_s: float = Field(default=1e-5, ge=0)
    """Seconds that each transfer over the emulated link takes beside its bytes."""

    direct_io: bool = True
    """Read experts past the page cache (O_DIRECT) where the file system allows it."""

    num_readers: int = Field(default=2, ge=1, le=64)
    """Threads that read experts from disk."""

    num_threads: int | None = Field(default=None, ge=1)
    """Compute threads; torch's own choice where None."""

    max_model_len: int | None = Field(default=None, ge=2)
    """Longest prompt plus answer in tokens; the model's own limit where None."""

    max_running: int = Field(default=32, ge=1)
    """Answers that are generated at once, a token of each in a step. A request of `n` answers counts as n."""

    max_waiting: int = Field(default=64, ge=0)
    """Answers that may wait beside `max_running` others, running or waiting for blocks; a request of more is
    refused with EngineOverloaded."""

    max_passed_over: int = Field(default=32, ge=0)
    """How many later requests may be given a place before a waiting one, because of their priority or of
    their experts; after that nobody is."""

    admission: Literal["fcfs", "experts"] = "fcfs"
    """Who of several waiting requests of the same priority gets a free place: `fcfs`, the first; `experts`,
    one whose experts are likely in their slots, or used by those that run, where that is expected to save a
    tenth of what steps move. For models whose experts differ by topic; without effect where all experts have
    slots, and for encoder-decoders."""

    batch_invariant: bool = False
    """Compute each answer by itself, so that it has the same bits whatever else runs: a pass for each in
    every step, a cache of its own, reserved whole, and a prompt in one step. Else the answers of a step share
    a pass, and sums may be rounded in another order. Slower with many answers; for decoders, and without
    log-probabilities of prompts."""

    prefix_cache: bool = True
    """Keep keys and values of ended requests while their blocks are free, for prompts that begin alike."""

    prefill_chunk: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Most prompt tokens in one step, so that a long prompt does not hold up the others. `auto`: 2048 or 1024
    where that costs at most one expert slot in 32, else 512: prompts use nearly all experts, and each byte of
    them that moves should serve as many tokens as can be."""

    max_inter_token_s: float | None = Field(default=None, gt=0)
    """Seconds from one token of an answer to the next within which steps are kept: prompts that come in
    between get as many tokens of a step as measured steps allow. None: `prefill_chunk` alone limits them. A
    prompt is read in whole chunks where even few of its tokens take longer, since splitting gains nothing."""

    @classmethod
    def parse(cls, options: dict[str, object]) -> EngineConfig:
        """Build from plain data. Raises ConfigError that names each option at fault."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {_message(e)} (got {e['input']!r})" for e in error.errors()
            )
            raise ConfigError(f"engine options: {faults}") from None

    @property
    def name(self) -> str:
        """The name that clients use for this model."""
        return self.served_model_name or self.model.rstrip("/").rpartition("/")[2]


def _message(fault: ErrorDetails) -> str:
    if fault["type"] == "extra_forbidden":
        return f"there is no such option; there are {', '.join(EngineConfig.model_fields)}"
    return fault["msg"]
