"""The report: turns the files of a run into tables and pages. It never loads a model.

table      the table of a run, for a terminal and in Markdown
examples   examples unit by unit: chunks, losses, what was skipped and why
page       report.html: templates, style sheet and script lie beside it
plot       the figures of the page as geometry
labels     places names in a figure so that none lies on another
sweep      the tables of a sweep
"""
