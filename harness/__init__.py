"""ManyMinds: a benchmark harness for personalised reward models."""
