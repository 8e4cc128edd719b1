"""One file per task; the file's name is the task's name and its first line is its line in `manyminds list`."""
