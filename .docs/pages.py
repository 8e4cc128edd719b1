"""Pages of the site: the project's own README files as they are, and a page of docstrings for each door."""

from pathlib import Path

import mkdocs_gen_files

from harness import registry

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md",
    "harness/README.md",
    "harness/CHANGELOG.md",
    "harness/methods/README.md",
    "tasks/README.md",
    "jobs/README.md",
    "cluster/README.md",
    "tests/README.md",
    ".github/CONTRIBUTING.md",
    "CITATION.cff",
)
REFERENCE = {
    "api": (
        "The Python door",
        ["harness.api", "harness.api.running", "harness.api.fitting", "harness.api.finished", "harness.frames"],
    ),
    "contract": (
        "The contract of tasks and methods",
        ["harness.data", "harness.task", "harness.method", "harness.table_task", "harness.judgements"],
    ),
    "scores": ("Metrics and statistics", ["harness.scores.metrics", "harness.scores.stats"]),
    "store": ("The store", ["harness.store.store"]),
    "tasks": ("All tasks", [registry.load_class("task", name).__module__ for name in registry.list_names("task")]),
    "methods": ("All methods", [f"harness.methods.{name}" for name in registry.list_names("method")]),
}

for document in DOCUMENTS:
    with mkdocs_gen_files.open(document, "w") as page:
        page.write((ROOT / document).read_text("utf-8"))
for name, (title, modules) in REFERENCE.items():
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as page:
        page.write(f"# {title}\n\n" + "\n".join(f"## `{module}`\n\n::: {module}\n" for module in modules))
