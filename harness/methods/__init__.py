"""One file per method; the file's name is the method's name and its first line is its line in `manyminds list`."""
