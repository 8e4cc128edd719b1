"""A small task for suites of tests that run whole: a suite of five methods takes seconds."""

SMALL_TASK = """
[[tasks]]
name = "low_rank"
n_users = 60
new_users = 30
pairs_per_user = 20
feature_dim = 8
queries = 20
shots = [0, 5]
"""
