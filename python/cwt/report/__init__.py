"""The report: turns the files of a run into tables and pages. It never loads a model.

table      the table of a run, for a terminal and in Markdown
examples   examples unit by unit: chunks, losses, what was skipped and why
page       report.html
sweep      the tables of a sweep
"""
