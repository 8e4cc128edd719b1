"""One file per task: the file's name is the task's name; `manyminds list` shows its first line."""
