"""Runs inside the Python that has Vidur's needs: plays one list of requests through Vidur's simulator.

Started by path as `python -I vidur_driver.py VIDUR_FOLDER JOB.json RESULT.json`; it imports vidur and the standard
library only. The job (see `vidur.job`) says which requests, limits and step times; the result holds the seconds that
the simulator's event loop took and two times of each request. One run per process: Vidur numbers its replicas globally.
"""

import atexit
import importlib
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL, DEVICE = "meta-llama/Meta-Llama-3-8B", "a100"
"""What Vidur plans memory and counts FLOPs for; its step times come from the job."""
COEFFICIENTS, FORESTS = "coefficients", "forests"
_LAYERS, _WIDTH, _HEADS, _KV_HEADS = 32, 4096, 32, 8


class _Coefficients:
    """A time predictor of Vidur that returns the twin's step: one sum over the tokens of a batch."""

    seconds: tuple[float, float, float, float, float]
    """d0, per decode, per KV token, per prefill token, per token squared of prefill attention."""

    def __init__(self, **_: Any) -> None:
        self.form = importlib.import_module("vidur.entities").ExecutionTime

    def get_execution_time(self, batch: Any, pipeline_stage: int) -> Any:  # noqa: ARG002 - Vidur's signature
        """Vidur's record of a step; the whole time stands in the field of the scheduler's time, in ms."""
        decodes, kv, tokens, attention = 0, 0, 0, 0.0
        for request, count in zip(batch.requests, batch.num_tokens, strict=True):
            done = request.num_processed_tokens
            if request.is_prefill_complete:
                decodes += 1
                kv += done
            else:
                tokens += count
                attention += count * (done + count / 2)
        d0, dn, dkv, dt, da = self.seconds
        seconds = d0 + dn * decodes + dkv * kv + dt * tokens + da * attention
        return self.form(_LAYERS, *([0.0] * 14), seconds * 1e3, 0.0, 0.0, 0.0, 0.0)


def _mend_restart() -> None:
    """Evicted requests keep their prompt.

    Vidur takes what an evicted request has processed for its new prompt and the rest for output. That is right for one
    that decodes; one that was evicted half-way through its prompt gets the other half as output tokens.
    """
    form = importlib.import_module("vidur.entities").Request
    restart = form.restart

    def mended(request: Any) -> None:
        unfinished = not request.is_prefill_complete
        prompt, output = request.num_prefill_tokens, request.num_decode_tokens
        restart(request)
        if unfinished:
            request._num_prefill_tokens, request._num_decode_tokens = prompt, output

    form.restart = mended


def _attention_profile(path: Path, seconds: tuple[float, ...], block_size: int) -> None:
    """A profile of attention kernels in Vidur's form, made from the coefficients (ms per layer)."""
    _, _, dkv, _, da = seconds
    names = (
        "n_embd,n_q_head,n_kv_head,block_size,num_tensor_parallel_workers,prefill_chunk_size,batch_size,kv_cache_size,"
        "time_stats.attn_kv_cache_save.median,time_stats.attn_prefill.median,time_stats.attn_decode.median"
    )
    head = f"{_WIDTH},{_HEADS},{_KV_HEADS},{block_size},1"
    lines = [names]
    for batch, kv in itertools.product((1, 2, 4, 8, 16, 32, 64, 96, 128), range(0, 4097, 256)):
        lines.append(f"{head},0,{batch},{kv},0.005,0,{dkv * batch * kv * 1e3 / _LAYERS}")
    for chunk, kv in itertools.product((1, 16, 64, 128, 256, 512, 1024, 2048, 4096), range(0, 4097, 256)):
        lines.append(f"{head},{chunk},1,{kv},0.005,{da * chunk * (kv + chunk / 2) * 1e3 / _LAYERS},0")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _predictor(job: dict[str, Any], root: Path, folder: Path, config: Any) -> Any:
    if job["predictor"] == COEFFICIENTS:
        registry = importlib.import_module("vidur.execution_time_predictor").ExecutionTimePredictorRegistry
        kind = importlib.import_module("vidur.types").ExecutionTimePredictorType.DUMMY
        _Coefficients.seconds = tuple(job["seconds"])
        registry.register(kind, _Coefficients)

        class Own(config.LinearRegressionExecutionTimePredictorConfig):  # type: ignore[misc]
            """Only a name to look the predictor up by."""

            @staticmethod
            def get_type() -> Any:
                return kind

        return Own()
    compute = root / "data" / "profiling" / "compute" / DEVICE / MODEL
    attention = compute / "attention.csv"
    if not attention.is_file():
        attention = folder / "attention.csv"
        _attention_profile(attention, tuple(job["seconds"]), job["block_size"])
    return config.RandomForrestExecutionTimePredictorConfig(
        compute_input_file=str(compute / "mlp.csv"),
        attention_input_file=str(attention),
        num_estimators=[50],
        max_depth=[16],
        min_samples_split=[2],
        k_fold_cv_splits=2,
        num_training_job_threads=1,
    )


def _simulator(job: dict[str, Any], root: Path, folder: Path) -> Any:
    config = importlib.import_module("vidur.config.config")
    trace = folder / "requests.csv"
    rows = [f"{at!r},{prompt},{output}" for at, prompt, output in job["requests"]]
    trace.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows]) + "\n", encoding="utf-8")
    longest = max(prompt + output for _, prompt, output in job["requests"])
    return importlib.import_module("vidur.simulator").Simulator(
        config.SimulationConfig(
            cluster_config=config.ClusterConfig(
                replica_config=config.ReplicaConfig(model_name=MODEL, device=DEVICE),
                replica_scheduler_config=config.SarathiSchedulerConfig(
                    batch_size_cap=job["max_num_seqs"],
                    block_size=job["block_size"],
                    num_blocks=job["blocks"],
                    watermark_blocks_fraction=0.0,
                    chunk_size=job["max_num_batched_tokens"],
                ),
            ),
            request_generator_config=config.TraceRequestGeneratorConfig(trace_file=str(trace), max_tokens=longest),
            execution_time_predictor_config=_predictor(job, root, folder, config),
            metrics_config=config.MetricsConfig(
                write_metrics=job["metrics"],
                store_plots=False,
                enable_chrome_trace=False,
                output_dir=str(folder / "output"),
                cache_dir=job["cache"],
            ),
        )
    )


def _play(job: dict[str, Any], root: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        simulator = _simulator(job, root, Path(name))
        setup = time.perf_counter() - began
        # Tables are not wanted, and writing them is not what is timed.
        atexit.unregister(simulator._write_output)
        requests = [event._request for _, event in sorted(simulator._event_queue)]
        if job["mended"]:
            _mend_restart()
        steps = importlib.import_module("vidur.entities").Batch
        first = steps.generate_id()
        wall, cpu = time.perf_counter(), time.process_time()
        simulator.run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "python": sys.version.split()[0],
        "setup_seconds": setup,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "steps": steps.generate_id() - first - 1,
        "first_token_seconds": [request.prefill_completed_at for request in requests],
        "finish_seconds": [request.completed_at for request in requests],
        "restarts": sum(request.num_restarts for request in requests),
    }


def main(arguments: list[str]) -> None:
    """Play the job and write what came out."""
    root, job_path, result_path = (Path(name) for name in arguments)
    sys.path.insert(0, str(root))
    job = json.loads(job_path.read_text(encoding="utf-8"))
    result_path.write_text(json.dumps(_play(job, root)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
