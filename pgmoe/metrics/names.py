"""The table of every metric: the one place where a name, its kind, labels and buckets are written.

Base units (seconds, bytes), `_total` on counters, suffixes as vLLM's where it has the same thing. All carry
the labels of `COMMON_LABELS` besides their own. The names are the same in the library's exporter and on the
Serve application's `/metrics`, which joins the pages of all engine replicas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

COMMON_LABELS = ("model_name", "replica")
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TRANSFER_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


@dataclass(frozen=True)
class Metric:
    """One row of the table; `labels` are those besides COMMON_LABELS."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"pgmoe_{name}_total", "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"pgmoe_{name}", "gauge", help, labels)


def _histogram(name: str, help: str, buckets: tuple[float, ...] = LATENCY_BUCKETS_S, *labels: str) -> Metric:
    return Metric(f"pgmoe_{name}", "histogram", help, labels, buckets)


REQUESTS_RUNNING = _gauge("num_requests_running", "Answers that are generated now.")
REQUESTS_WAITING = _gauge(
    "num_requests_waiting", "Answers that wait for a place, those included that gave theirs up."
)
KV_USED_BLOCKS = _gauge("kv_cache_used_blocks", "Blocks of keys and values that running answers hold.")
KV_BLOCKS = _gauge("kv_cache_blocks", "Blocks of keys and values in all.")
PREFERRED = _counter("num_preferred", "Requests admitted before earlier ones because of their experts.")
PREEMPTIONS = _counter("num_preemptions", "Times that an answer gave its blocks to a more urgent one.")
PREFIX_QUERIES = _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
PREFIX_HITS = _counter("prefix_cache_hits", "Prompt tokens whose keys and values were found there.")
REQUESTS_FINISHED = _counter(
    "request_success", "Requests ended, failed ones too, by reason.", "finished_reason"
)
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens computed.")
GENERATION_TOKENS = _counter("generation_tokens", "Tokens generated.")
TIME_TO_FIRST_TOKEN = _histogram("time_to_first_token_seconds", "From submission to the first token.")
INTER_TOKEN_LATENCY = _histogram("inter_token_latency_seconds", "Between two tokens of a request.")
QUEUE_TIME = _histogram("request_queue_time_seconds", "From submission to the first step.")
E2E_LATENCY = _histogram("e2e_request_latency_seconds", "From submission to the end.")
EXPERT_HITS = _counter("expert_cache_hits", "Experts found in a slot when needed.", "layer")
EXPERT_MISSES = _counter("expert_cache_misses", "Experts that were not in a slot when needed.", "layer")
EXPERT_EVICTIONS = _counter("expert_cache_evictions", "Experts that lost their slot.", "layer", "policy")
EXPERT_RESIDENT = _gauge("expert_cache_resident", "Experts in slots now.")
EXPERT_SLOTS = _gauge("expert_cache_slots", "Expert slots on the device.")
TRANSFER_BYTES = _counter(
    "expert_transfer_bytes", "Expert bytes copied, by link and reason.", "link", "reason"
)
TRANSFER_TIME = _histogram(
    "expert_transfer_seconds", "One expert's copy, by link.", TRANSFER_BUCKETS_S, "link"
)
LINK_BUSY = _counter("link_busy_seconds", "Seconds in which an expert was on its way over the link.", "link")
LINK_BANDWIDTH = _gauge(
    "link_bandwidth_bytes_per_second", "What the link carried when it was measured, at the start.", "link"
)
STALL_TIME = _counter("expert_stall_seconds", "Seconds that compute waited for experts.", "layer")
PREFETCH_BYTES = _counter(
    "prefetch_bytes",
    "Bytes of experts ordered before they were asked for: ready in time, still under way, or never used.",
    "outcome",
)
PREFETCH_ON = _gauge("prefetch_on", "1 while guesses are followed, 0 while they do not pay.")
PREFETCH_SWITCHES = _counter("prefetch_switches", "Times that guessing was switched off or on again.")

METRICS: tuple[Metric, ...] = tuple(m for m in list(globals().values()) if isinstance(m, Metric))
