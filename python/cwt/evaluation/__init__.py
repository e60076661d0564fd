"""Evaluation: what a student answers, what its gradients look like, and statistics.

generation   grading, cost and latency of greedy answers
generators   who writes them: the `Generator` protocol, the model in this process
server       a student behind an OpenAI-compatible server
statistics   intervals of shares and of paired differences
diagnostics  gradient shares, over-smoothing, sharpness of the loss
"""
