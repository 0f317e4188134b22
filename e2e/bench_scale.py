"""`wattkeeper bench scale` against a real control plane that exists only for it; arguments are handed on."""

from __future__ import annotations

import subprocess
import sys

from e2e.cluster import control_plane, tools


def main() -> int:
    """Start the control plane, run the benchmark, and return its exit code."""
    try:
        with control_plane.ControlPlane() as cluster:
            command = [sys.executable, "-m", "wattkeeper", "bench", "scale", f"--kubeconfig={cluster.kubeconfig}"]
            return subprocess.run([*command, *sys.argv[1:]], check=False).returncode
    except tools.ToolsMissingError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
