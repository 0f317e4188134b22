"""A real Kubernetes for tests: local control plane with simulated GPU nodes, `kind`, or an existing cluster.

    with ControlPlane() as cluster:
        cluster.add_gpu_node("gpu-0", gpu_product="NVIDIA-H100-80GB-HBM3", count=8)
        cluster.apply(DEPLOYMENT)
        cluster.kubectl("rollout", "status", "deployment/chat", "--timeout=30s")

The local programs come from `make tools`; the README of this folder lists the commands.
"""

from e2e.cluster.backends import ExistingCluster, KindCluster
from e2e.cluster.base import Cluster, CommandError, wait_until
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.kwok import Kwok
from e2e.cluster.processes import ProcessExitedError
from e2e.cluster.prometheus import Prometheus
from e2e.cluster.tools import ToolsMissingError

__all__ = [
    "Cluster",
    "CommandError",
    "ControlPlane",
    "ExistingCluster",
    "KindCluster",
    "Kwok",
    "ProcessExitedError",
    "Prometheus",
    "ToolsMissingError",
    "wait_until",
]
