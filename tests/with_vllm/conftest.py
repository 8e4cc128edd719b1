"""Tests that need vLLM: `make test-vllm`. (A folder named vllm would shadow the package.)"""

from importlib.util import find_spec

collect_ignore_glob = ["*"] if find_spec("vllm") is None else []
