"""These run where vLLM is: `make test-vllm`. (A folder called vllm would be found in its place.)"""

from importlib.util import find_spec

collect_ignore_glob = ["*"] if find_spec("vllm") is None else []
