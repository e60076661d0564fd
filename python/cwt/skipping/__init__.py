"""Skipping: which units can a student do without?

criterion  what a judge asks, as data; a decision with its evidence
scoring    what a student says of every token of the units that stay
judge      `forward` and `literal`: decides from what follows a unit
ratify     a student trained on the judge's decisions confirms them or takes them back
controls   oracle and random skips, and what share of units is left out
"""
