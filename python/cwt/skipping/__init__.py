"""Skipping: which units can a student do without?

criterion  when a unit may be left out, as data; a decision with its evidence
scoring    the probability that a student gives to every token of the units that stay
search     runs the trials of a judge for many examples: short texts whole, long ones in pieces
judge      `forward` and `literal`: decide from what follows a unit
ratify     a student trained on the judge's decisions confirms them or takes them back
controls   oracle and random skips, and the share of units that is left out
"""
