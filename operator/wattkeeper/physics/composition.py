"""Steps of a catalogue model composed from measured kernels: what a GPU does, without the host's part.

Per layer: projections, attention and feed-forward block as measured tables say for the shapes that one of `shards` GPUs
has; element-wise kernels and the exchange of activations are estimates. Element-wise kernels: five launches of 4 us, or
1.9 times the bytes they move, whichever is longer; that gives norms, rotary embedding and activation of Vidur's
timings (Llama-2-7B and Llama-3-8B on A100 and H100) within about 15 %. The exchange is that of `roofline` and 5 us a
time, as measured all-reduces take.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.errors import DataFileError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import catalogue, kernel_checks, kv, roofline
from wattkeeper.physics.architecture import Cache, ModelSpec, Precision
from wattkeeper.physics.fitting import FitError, StepRows
from wattkeeper.physics.kernel_tables import KernelTables

VIDUR = "vidur linear layers (microsoft/vidur, MIT)"
ESTIMATED_PARTS = ("element-wise kernels", "exchange of activations")
_LAUNCH_SECONDS = 4e-6
_LAUNCHES = 5
_MOVED = 1.9
_EXCHANGE_SECONDS = 5e-6
_DTYPES = {Precision.BF16: ("bfloat16",), Precision.FP8: ("fp8", "fp8_block"), Precision.NVFP4: ("nvfp4",)}
_PREFILLS = (0.0, 64.0, 256.0, 512.0, 1024.0, 2048.0)
_DECODES = (0.0, 1.0, 8.0, 32.0, 64.0, 128.0, 256.0)
_MEMORY_UTILISATION = 0.92
_LEAST_KV_TOKENS = 150_000.0
_CONTEXTS = (256.0, 1024.0, 4096.0)
_VIDUR_FILES = {
    ("meta-llama/Llama-2-7b-chat-hf", "nvidia-a100-sxm"): "mlp_a100_Llama-2-7b-hf.csv",
    ("meta-llama/Llama-2-7b-chat-hf", "nvidia-h100-sxm"): "mlp_h100_Llama-2-7b-hf.csv",
    ("meta-llama/Meta-Llama-3-8B-Instruct", "nvidia-a100-sxm"): "mlp_a100_Meta-Llama-3-8B.csv",
    ("meta-llama/Llama-3.1-8B-Instruct", "nvidia-a100-sxm"): "mlp_a100_Meta-Llama-3-8B.csv",
}
_VIDUR_PARTS = (
    "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "post_attention_layernorm", "mlp_up_proj",
    "mlp_act", "mlp_down_proj", "add",
)  # fmt: skip
_VIDUR_COLUMNS = tuple(f"time_stats.{part}.median" for part in _VIDUR_PARTS)
_VIDUR_COUNTS = ("num_tokens", "num_tensor_parallel_workers")


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A model on GPUs whose kernels were measured.

    Raises FitError for architectures and precisions without measured kernels, DataFileError for missing tables.
    """

    model: ModelSpec
    tables: KernelTables
    shards: int
    linear: "pd.Series[float] | None" = None
    """Vidur's timings of all linear and element-wise layers in place of matrix products."""

    def __post_init__(self) -> None:
        unknown = {group.cache for group in self.model.groups} - {Cache.FULL, Cache.SLIDING}
        if unknown:
            kinds = " and ".join(sorted(cache.value for cache in unknown))
            raise FitError(
                f"{self.model.name} has {kinds} layers, of which there are no measured kernels: "
                "use --source itl or live"
            )
        if self.model.precision not in _DTYPES and not self.model.experts_only_quantised:
            raise FitError(
                f"there are no measured kernels in {self.model.precision.value}: use --source itl or live, or fit the "
                "bf16 model"
            )

    def rows(self) -> StepRows:
        """Steps of prefill alone, decode alone and both, at common sizes that fit beside the weights.

        Up to `_LEAST_KV_TOKENS` all are taken: less would not tell KV reads from sequences.
        """
        gpu = catalogue.gpu(self.tables.source.accelerator)
        capacity = kv.roofline_capacity_tokens(
            gpu,
            weight_bytes_per_gpu=self.model.weight_bytes / self.shards,
            kv_bytes_per_token=kv.demand(self.model, tensor_parallel=self.shards).bytes_per_token(),
            memory_utilisation=_MEMORY_UTILISATION,
        )
        if capacity == 0.0:
            raise FitError(f"{self.model.name} does not fit {self.shards} GPUs of {gpu.name}: raise --tp")
        cells = [
            (prefill, decodes, context)
            for prefill in _PREFILLS
            for decodes in _DECODES
            for context in (_CONTEXTS if decodes else _CONTEXTS[:1])
            if (prefill or decodes) and decodes * context <= max(capacity, _LEAST_KV_TOKENS)
        ]
        prefill, decodes, context = np.array(cells, dtype=np.float64).T
        return StepRows(
            prefill_tokens=prefill,
            decode_sequences=decodes,
            kv_tokens=decodes * context,
            attention_products=prefill**2 / 2.0,
            seconds=self.seconds(prefill, decodes, context),
        )

    def seconds(self, prefill: FloatArray, decodes: FloatArray, context: FloatArray) -> FloatArray:
        """Seconds of steps with one prompt chunk of `prefill` tokens and `decodes` sequences of `context` tokens."""
        tokens = prefill + decodes
        return self._linear_layers(tokens) + self._attention(prefill, decodes, context) + self._head(prefill, decodes)

    def _linear_layers(self, tokens: FloatArray) -> FloatArray:
        model = self.model
        exchange = np.zeros_like(tokens)
        if self.shards > 1:
            gpu = catalogue.gpu(self.tables.source.accelerator)
            exchange = tokens * roofline.exchange_seconds(model, gpu, shards=self.shards)
            exchange = exchange + roofline.exchanges(model) * _EXCHANGE_SECONDS
        if self.linear is not None:
            sizes = self.linear.index.to_numpy(np.float64)
            return np.asarray(model.layers * np.interp(tokens, sizes, self.linear.to_numpy()) + exchange)
        group = model.groups[0]
        heads = model.heads / self.shards
        kv_heads = max(1.0, group.kv_heads / self.shards)
        width = heads * group.key_dim + kv_heads * (group.key_dim + group.value_dim)
        projections = self._product(tokens, width, model.hidden)
        projections = projections + self._product(tokens, model.hidden, heads * group.value_dim)
        plain = model.dense_layers if model.experts else model.feed_forward_layers
        return np.asarray(
            model.layers * (projections + self._elementwise(tokens))
            + plain * (self._feed_forward(tokens, model.intermediate) if plain else 0.0)
            + model.expert_layers * (self._experts(tokens) if model.experts else 0.0)
            + exchange
        )

    def _feed_forward(self, tokens: FloatArray, width: float) -> FloatArray:
        """A gated feed-forward block of this width."""
        own = width / self.shards
        up = self._product(tokens, (2.0 if self.model.gated else 1.0) * own, self.model.hidden)
        return up + self._product(tokens, self.model.hidden, own)

    def _experts(self, tokens: FloatArray) -> FloatArray:
        model = self.model
        routed = self.tables.experts(
            tokens,
            hidden=model.hidden,
            intermediate=model.expert_intermediate,
            experts=model.experts,
            per_token=model.experts_per_token,
            shards=self.shards,
            dtype=_DTYPES[model.precision][0] if model.precision in _DTYPES else model.precision.value,
        )
        shared = self._feed_forward(tokens, model.shared_intermediate) if model.shared_intermediate else 0.0
        return routed + shared + self._product(tokens, model.experts, model.hidden, plain=True)

    def _product(self, tokens: FloatArray, columns: float, inner: float, *, plain: bool = False) -> FloatArray:
        names = _DTYPES[Precision.BF16]
        if not plain and not self.model.experts_only_quantised:
            names = _DTYPES[self.model.precision]
        for dtype in names[:-1]:
            with contextlib.suppress(DataFileError):
                return self.tables.matrix_product(tokens, columns=round(columns), inner=round(inner), dtype=dtype)
        return self.tables.matrix_product(tokens, columns=round(columns), inner=round(inner), dtype=names[-1])

    def _elementwise(self, tokens: FloatArray) -> FloatArray:
        gpu = catalogue.gpu(self.tables.source.accelerator)
        width = self.model.intermediate or self.model.expert_intermediate * self.model.experts_per_token
        moved = 2.0 * (12.0 * self.model.hidden + 3.0 * width / self.shards)
        return np.maximum(_LAUNCHES * _LAUNCH_SECONDS, tokens * _MOVED * moved / gpu.bandwidth_bytes_per_second)

    def _attention(self, prefill: FloatArray, decodes: FloatArray, context: FloatArray) -> FloatArray:
        total = np.zeros_like(prefill)
        for group in self.model.groups:
            shape = {
                "heads": self.model.heads // self.shards,
                "kv_heads": max(1, group.kv_heads // self.shards),
                "head_dim": group.key_dim,
                "window": group.window,
            }
            decode = self.tables.decode_attention(np.maximum(decodes, 1.0), context, **shape)
            chunk = self.tables.prefill_attention(np.maximum(prefill, 16.0), **shape)
            total = total + group.layers * (np.where(decodes > 0, decode, 0.0) + np.where(prefill > 0, chunk, 0.0))
        return total

    def _head(self, prefill: FloatArray, decodes: FloatArray) -> FloatArray:
        """The output head, for the sequences that get a token."""
        sampled = decodes + (prefill > 0)
        return self._product(sampled, self.model.vocab / self.shards, self.model.hidden, plain=True)


def vidur_linear(folder: Path, model: str, accelerator: str, shards: int) -> "pd.Series[float]":
    """Seconds per layer over tokens of a step (index), as Vidur measured it.

    Raises DataFileError: not measured, or the file is not there.
    """
    name = _VIDUR_FILES.get((model, accelerator))
    if name is None:
        known = "; ".join(f"{pair[0]} on {pair[1]}" for pair in _VIDUR_FILES)
        raise DataFileError(f"vidur has no linear layers of {model} on {accelerator}, only of {known}")
    path = folder / "kernels" / "vidur-mlp" / name
    frame, wrong = scan_vidur(path)
    if wrong:
        raise DataFileError(f"{kernel_checks.first(path, wrong)}: copy it anew from {VIDUR}")
    own = frame[frame["num_tensor_parallel_workers"] == shards]
    if own.empty:
        raise DataFileError(f"{path} has no rows for {shards} tensor parallel workers")
    parts = own[list(_VIDUR_COLUMNS)].sum(axis=1) * 1e-3
    return parts.groupby(own["num_tokens"]).median().sort_index()


def scan_vidur(path: Path) -> tuple[pd.DataFrame, dict[int, str]]:
    """The used columns of one of Vidur's files (milliseconds per layer), and why which rows cannot be used.

    Raises DataFileError: missing, unreadable, or another kind of file.
    """
    advice = f"copy it from {VIDUR} into the data folder"
    try:
        frame = pd.read_csv(path)
    except FileNotFoundError as error:
        raise DataFileError(f"{path} is missing: {advice}") from error
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be read as a table of layers ({error}): {advice}") from error
    names = (*_VIDUR_COLUMNS, *_VIDUR_COUNTS)
    lost = [name for name in names if name not in frame.columns]
    if lost:
        raise DataFileError(f"{path}: columns {', '.join(lost)} are missing: {advice}")
    frame = frame[list(names)].apply(pd.to_numeric, errors="coerce")
    return frame, kernel_checks.layer_reasons(frame, milliseconds=_VIDUR_COLUMNS, counts=_VIDUR_COUNTS)
