"""Examples: where they come from, how a rationale divides into units, how an answer is read.

example   a question, the units of its rationale, its answer; the run's own files
units     cuts a rationale into units
answers   reads an answer out of a text and compares two answers
tasks     generated problems with a programmatic teacher
readers/  the files that people have, one module a format
split     draws train, validation and test of imported examples
"""
