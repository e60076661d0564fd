"""Evaluation: what a student answers, what its gradients look like, and statistics.

generation   greedy generation, grading, cost and latency of answers
statistics   intervals of shares and of paired differences
diagnostics  gradient shares, over-smoothing, sharpness of the loss
"""
