"""Presets: data sets of the Hugging Face hub, each described by fields of a task in one file."""
