"""Training: how a rationale is chunked, what a step trains on, and the training loop.

recipe    what one training run does, as data
chunking  groups units into chunks: average chunking, dynamic programming, search-based chunking
sampler   draws the rows of each step
loop      trains a student; stops and resumes exactly
"""
