"""A simulator of many vLLM pods that serves vllm:* and DCGM_* metrics and obeys what is in the API."""
