"""What one step of a replica does, in seconds at the data sheet's figures: the terms of the fitted energy prior.

Each term is the time that a step would take if it did nothing else, so that each has a plain physical scale, and all
grow with the work. `textbook` terms follow from a model's config.json and a GPU's data sheet. `engine` terms stand for
how the serving engine and its kernels behave, and for a host that several replicas of one GPU share; they were written
down by people who had seen measured runs (ML.ENERGY v3), so that scores with them are reported beside scores without
them. docs/accuracy/energy.md says how they were chosen.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import kv, roofline
from wattkeeper.physics.architecture import ModelSpec, Precision
from wattkeeper.physics.profile import GpuSpec

Kind = Literal["textbook", "engine"]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One replica: a model on GPUs that share its steps."""

    model: ModelSpec
    gpu: GpuSpec
    gpus: int
    data_parallel: int = 1
    """Groups of GPUs that attend to sequences of their own; experts are shared by all."""
    kv_bytes_ratio: float = 1.0
    """KV bytes of a token over those of the model in its default dtype."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """N kinds of steps of a deployment; arrays (N,)."""

    batch: FloatArray
    """Decoding sequences of the replica."""
    prefill_tokens: FloatArray
    """Per step."""
    context_tokens: FloatArray
    """Mean resident tokens of a sequence."""
    prompt_tokens: FloatArray
    output_tokens: FloatArray
    multimodal: FloatArray
    """1 where requests carry images or video."""
    begun: FloatArray
    """Requests that begin per step."""
    new_share: FloatArray
    """Of those, the share whose prompt the engine has not kept, 0..1. `prefill_tokens` are of these alone."""

    def __len__(self) -> int:
        return len(self.batch)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of a step."""

    name: str
    kind: Kind
    description: str


TERMS: tuple[Term, ...] = (
    Term(name="layers", kind="textbook", description="20 us per layer: launches and small kernels"),
    Term(name="dense_read", kind="textbook", description="bytes of weights that every token uses, over bandwidth"),
    Term(name="expert_read", kind="textbook", description="bytes of the experts that the step's tokens choose"),
    Term(name="kv_read", kind="textbook", description="KV bytes of the running sequences, windows and states seen"),
    Term(name="decode_compute", kind="textbook", description="operations of the decoding tokens, over peak rate"),
    Term(name="prefill_compute", kind="textbook", description="operations of prompt tokens, over peak rate"),
    Term(name="reduce_latency", kind="textbook", description="20 us per layer and doubling of the GPUs: all-reduces"),
    Term(name="exchange", kind="textbook", description="activations between GPUs, over the link's bandwidth"),
    Term(name="sequences", kind="textbook", description="20 us per sequence: sampling and the host's part"),
    Term(name="requests", kind="textbook", description="5 ms per request that begins: admission and tokenisation"),
    Term(name="media", kind="textbook", description="50 ms per beginning request with new images or video"),
    Term(name="media_host", kind="engine", description="50 ms per beginning request with any images or video"),
    Term(name="expert_layers", kind="engine", description="20 us per layer with routed experts"),
    Term(name="routing", kind="engine", description="10 ns per token, expert and layer with routed experts"),
    Term(name="eight_bit_experts", kind="engine", description="0.1 ms per layer with routed experts in 8 bits"),
    Term(name="eight_bit_held", kind="engine", description="1 us per such layer and expert that a GPU holds"),
    Term(name="eight_bit_chosen", kind="engine", description="1 us per such layer and expert of a GPU that is chosen"),
    Term(name="eight_bit_compute", kind="engine", description="operations of 8-bit weights, over peak rate"),
    Term(name="eight_bit_dense", kind="engine", description="the same of models without experts"),
    Term(name="four_bit_compute", kind="engine", description="decode operations of 4-bit weights, in bf16"),
    Term(name="four_bit_read", kind="engine", description="bytes of chosen experts in MXFP4"),
    Term(name="state_layers", kind="engine", description="20 us per layer with a state (Mamba, linear attention)"),
    Term(name="state_sequences", kind="engine", description="0.5 us per such layer and sequence"),
    Term(
        name="small_tiles", kind="engine", description="decode operations while tiles are partly empty: root of batch"
    ),
    Term(name="data_parallel", kind="engine", description="operations where ranks attend to own sequences"),
    Term(name="shared_host", kind="engine", description="20 us per sequence of a replica of one GPU"),
    Term(name="shared_host_media", kind="engine", description="20 us per sequence with media of a replica of one GPU"),
    Term(name="shared_host_long", kind="engine", description="1 ms per step of a replica of one GPU with long answers"),
)
_LONG_ANSWER_TOKENS = 3000.0
"""Between conversations (up to 1,700 in ML.ENERGY) and reasoning (from 5,000 on, but for one family)."""
_FULL_TILE = 64.0
"""Rows of a matrix tile: with as many sequences this term is as large as `decode_compute`."""
NAMES = tuple(term.name for term in TERMS)
TEXTBOOK = tuple(index for index, term in enumerate(TERMS) if term.kind == "textbook")
_DRAWN: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.98, ("decode_compute", "prefill_compute", "eight_bit_compute", "eight_bit_dense", "four_bit_compute",
            "small_tiles", "data_parallel", "expert_read", "four_bit_read")),
    (0.72, ("dense_read",)),
    (0.7, ("routing", "eight_bit_experts", "eight_bit_held", "eight_bit_chosen")),
    (0.5, ("kv_read",)),
    (0.42, ("layers", "reduce_latency", "exchange", "expert_layers", "state_layers", "state_sequences")),
    (0.19, ("sequences", "requests", "media", "media_host", "shared_host", "shared_host_media", "shared_host_long")),
)  # fmt: skip
"""Medians of single kernels on H200 and B200, none of them of the runs that terms are fitted to
(docs/accuracy/kernels.md): those that compute, and experts that are read; weights; experts that mostly wait (0.67 and
0.75); KV in decode (0.48 and 0.55); others that mostly wait (0.36 and 0.48). Where the host is at work the card
draws its floor."""
POWER_SHARES: FloatArray = np.array([next(share for share, names in _DRAWN if name in names) for name in NAMES])
"""Of the card's power limit while a term runs, before anything is fitted; (len(TERMS),)."""


def matrix(deployment: Deployment, steps: Steps) -> FloatArray:
    """Seconds of each term in each step; (N, len(TERMS)), zero where a deployment has no such part."""
    model, gpu = deployment.model, deployment.gpu
    ranks = deployment.gpus // deployment.data_parallel
    own = steps.batch / deployment.data_parallel
    tokens = steps.batch + steps.prefill_tokens
    demand = kv.demand(model, tensor_parallel=ranks)
    dense_bytes = max(model.weight_bytes - model.expert_bytes - model.embedding_bytes, 0.0)
    touched = touched_share(model, steps)
    compute = roofline.compute_seconds(model, gpu, shards=deployment.gpus)
    one = np.ones(len(steps))
    eight_bit = model.precision in (Precision.FP8, Precision.INT8)
    four_bit = model.precision in (Precision.MXFP4, Precision.INT4)
    experts_read = model.expert_bytes * touched / (deployment.gpus * gpu.bandwidth_bytes_per_second)
    held = 1e-6 * model.expert_layers * eight_bit * model.experts / deployment.gpus
    alone = deployment.gpus == 1
    columns = {
        "layers": 2e-5 * model.layers * one,
        "dense_read": dense_bytes / (ranks * gpu.bandwidth_bytes_per_second) * one,
        "expert_read": experts_read,
        "kv_read": own
        * deployment.kv_bytes_ratio
        * demand.step_bytes(steps.context_tokens)
        / gpu.bandwidth_bytes_per_second,
        "decode_compute": compute * steps.batch,
        "prefill_compute": compute * steps.prefill_tokens,
        "reduce_latency": 2e-5 * model.layers * np.log2(deployment.gpus) * one,
        "exchange": roofline.exchange_seconds(model, gpu, shards=deployment.gpus) * tokens,
        "sequences": 2e-5 * steps.batch,
        "requests": 5e-3 * steps.begun,
        "media": 0.05 * steps.begun * steps.new_share * steps.multimodal,
        "media_host": 0.05 * steps.begun * steps.multimodal,
        "expert_layers": 2e-5 * model.expert_layers * one,
        "routing": 1e-8 * model.expert_layers * model.experts * tokens,
        "eight_bit_experts": 1e-4 * model.expert_layers * eight_bit * one,
        "eight_bit_held": held * one,
        "eight_bit_chosen": held * touched,
        "eight_bit_compute": compute * tokens * eight_bit,
        "eight_bit_dense": compute * tokens * (eight_bit and model.experts == 0),
        "four_bit_compute": compute * steps.batch * four_bit,
        "four_bit_read": experts_read * (model.precision is Precision.MXFP4),
        "state_layers": 2e-5 * model.state_layers * one,
        "state_sequences": 5e-7 * model.state_layers * steps.batch,
        "small_tiles": compute * np.sqrt(_FULL_TILE * steps.batch),
        "data_parallel": compute * tokens * (deployment.data_parallel > 1),
        "shared_host": 2e-5 * steps.batch * alone,
        "shared_host_media": 2e-5 * steps.batch * steps.multimodal * alone,
        "shared_host_long": 1e-3 * alone * (steps.output_tokens > _LONG_ANSWER_TOKENS),
    }
    return np.stack([columns[name] for name in NAMES], axis=1)


def touched_share(model: ModelSpec, steps: Steps) -> FloatArray:
    """Share of the experts that some token of a step chooses, mean over steps; (N,).

    Prompts come whole, in few steps: those choose nearly all experts, the others only what the batch chooses. How many
    begin in a step is taken for Poisson distributed.
    """
    with_prompt = -np.expm1(-steps.begun * steps.new_share)
    prompts = np.divide(steps.prefill_tokens, with_prompt, out=np.zeros(len(steps)), where=with_prompt > 0.0)
    alone, joined = (roofline.touched_share(model, tokens) for tokens in (steps.batch, steps.batch + prompts))
    return np.asarray((1.0 - with_prompt) * alone + with_prompt * joined)
