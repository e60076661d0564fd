"""Evaluation: what a student answers, what its training looked like from inside, and statistics.

generation   greedy generation, grading, cost and latency of answers
statistics   intervals of shares and of paired differences
diagnostics  gradient shares, over-smoothing, sharpness of the loss
"""
