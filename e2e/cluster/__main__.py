"""A cluster for a developer: `python -m e2e.cluster up` leaves one running, `down` ends it."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import time

from e2e.cluster import control_plane, kwok, processes, tools

ROOT = pathlib.Path(__file__).resolve().parents[2]
STATE = ROOT / "e2e" / ".state"
PIDS = STATE / "pids.json"
GPU_NODES = (("gpu-0", "NVIDIA-H100-80GB-HBM3"), ("gpu-1", "NVIDIA-H100-80GB-HBM3"), ("gpu-2", "NVIDIA-A100-SXM4-80GB"))


def up(*, ready_delay_seconds: float) -> None:
    """Start a detached cluster with three GPU nodes and the CRDs of crds/."""
    if any(processes.is_running(pid) for pid in _pids()):
        raise SystemExit(f"a cluster is already running; `export KUBECONFIG={STATE / 'admin.kubeconfig'}` uses it")
    shutil.rmtree(STATE, ignore_errors=True)
    started = time.monotonic()
    cluster = control_plane.ControlPlane(
        pods=kwok.PodBehaviour(ready_delay_seconds=ready_delay_seconds), directory=STATE, detached=True
    ).start()
    PIDS.write_text(json.dumps(list(cluster.pids.values())))
    for name, product in GPU_NODES:
        cluster.add_gpu_node(name, gpu_product=product, count=8)
    crds = ROOT / "crds"
    if any(crds.glob("*.yaml")):
        cluster.apply_crds(crds)
    print(f"# Kubernetes at {cluster.server}, ready in {time.monotonic() - started:.1f} s; `make cluster-down` ends it")
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    if shutil.which("kubectl") is None:
        print(f"export PATH=$PATH:{tools.folder()}")


def down() -> None:
    """End the detached cluster, if there is one."""
    pids = [pid for pid in _pids() if processes.is_running(pid)]
    for pid in pids:
        processes.kill_group(pid)
    processes.wait_gone(pids)
    shutil.rmtree(STATE, ignore_errors=True)
    print("no cluster is running now" if pids else "no cluster was running")


def _pids() -> list[int]:
    return list(json.loads(PIDS.read_text())) if PIDS.exists() else []


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument(
        "--ready-delay", type=float, default=0.0, metavar="SECONDS", help="start-up time of simulated pods (default: 0)"
    )
    options = parser.parse_args()
    if options.verb == "up":
        up(ready_delay_seconds=options.ready_delay)
    else:
        down()


if __name__ == "__main__":
    main()
