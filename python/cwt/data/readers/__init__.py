"""Files of questions with rationales and answers; `read_examples` tells the formats apart.

read        rows to examples: the rules, and what is dropped
imported    the result; `describe` tells it, `file_hashes` notes its files
sources     which container a path is: JSON, CSV, Parquet, a `datasets` folder, a hub name
decode      bytes as text: gzip, Zstandard, byte order marks, UTF-16
json_rows   a JSON list, JSON lines or an object with rows inside, with line numbers
tables      CSV, Parquet, `datasets`
formats     the formats of a row, in the order in which they are tried: one module each
raw         what every format gives, and the rules by which a value becomes text
think       the markers of `<think>...</think>` answers
"""

from cwt.data.readers.imported import Dropped, Imported, describe, file_hashes
from cwt.data.readers.raw import RawExample, question_key
from cwt.data.readers.read import read_examples

__all__ = [
    "Dropped",
    "Imported",
    "RawExample",
    "describe",
    "file_hashes",
    "question_key",
    "read_examples",
]
