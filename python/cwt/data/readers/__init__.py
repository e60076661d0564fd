"""Files of teacher rationales: `read_examples` tells the formats apart, one module reads each.

rows      JSON and JSONL files as rows with their line numbers
columns   rows as questions, rationales and answers
"""

from cwt.data.readers.columns import Imported, read_examples

__all__ = ["Imported", "read_examples"]
