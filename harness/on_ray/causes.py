"""Why Ray ended work, in one line: Ray's own reports have many, and name classes instead of what they do."""

from __future__ import annotations

import re

PROCESSES = {  # class names of Ray's actors
    **dict.fromkeys(("ImplicitFunc", "wrap_function"), "Ray Tune's process that leads a group of trials"),
    "TrainController": "Ray Train's process that leads a group of trials",
    "RayTrainWorker": "a worker",
}
MAX_USERS = 3  # of a full memory that are named


def cause_in_words(error: object) -> str:
    """Return what an error of Ray, Tune or Train says: whose memory was full, which process died, or its last line.

    error: an exception, or its text: what Tune lists is not always an exception.
    """
    text = str(error)
    if "running low on memory" in text:
        return _full_memory(text)
    if died := re.search(r"class_name: (\w+)", text):
        where = re.search(r"\tpid: (\d+)(?:\n\t.*)*?\n\tip: (\S+)", text[died.start() :])
        return (
            f"{PROCESSES.get(died[1], died[1])} died"
            + (f" (process {where[1]} on {where[2]})" if where else "")
            + (", with its node" if "node has died" in text else "")
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def _full_memory(text: str) -> str:
    """Return whose memory was full, from the report of Ray's memory monitor."""
    node = re.search(r"Memory on the node \(IP: ([^,)]+).*?\) was (\S+ used / \S+ limit)", text)
    where = f"the memory of the node {node[1]} was full ({node[2]})" if node else "the memory of a node was full"
    users = re.findall(r"^\d+\t([\d.]+)\t(.+)$", text, re.MULTILINE)[:MAX_USERS]
    most = "; ".join(f"{size} GB by {command.strip()}" for size, command in users)
    return f"{where}, so Ray killed processes there{f'; most was used by: {most}' if most else ''}"
