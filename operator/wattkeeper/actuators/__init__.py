"""What to change on live objects, as diffs: vLLM argument patcher, scale, NodePowerCap. Pure; no API calls."""
