"""The pipeline: from a configuration to a folder with students, scores and a report.

workspace    every path of a run's folder, and whether a configuration belongs to it
methods      the rows of the table, as data: what each trains, and from which student
data         the examples: generated or imported, every row used or listed
fit          what the data and the student decide of a configuration: lengths, batches, budget
plan         what a run will do and take, said before it begins
stages       chunks, training, skips, evaluation: each reads what the one before it wrote
skips        who decides what a row leaves out
choice       when skip-thinking training begins, and which of its students it ends with
export       what a row of the table trains, as rows for other trainers
results      the figures and costs of every row: report.json
views        what the report page shows of single examples
run          `run(config, out)`: all stages; the command line, a sweep and a notebook call it
parallel     several rows side by side
own_process  a piece of work in a process of its own, forked from a server (warm) where it can be
sweep        tasks x seeds x methods, one run (a cell) each
cells        the cells on this machine, by joblib, or on a Ray cluster (cluster)
generators   who writes the answers of a student: the model here, or a server
"""
