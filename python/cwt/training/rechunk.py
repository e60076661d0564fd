"""Chunks that are searched anew at the beginning of every epoch, as the student learns."""

from collections.abc import Sequence

from cwt.data.example import Example
from cwt.data.marks import with_stage_marks
from cwt.students.student import Student
from cwt.students.tokenized import TokenizedExample
from cwt.training.chunking import Segmenter, chunk_shares
from cwt.training.recipe import ChunkOptions


class Rechunker:
    """Searches the chunks of all examples with the student as it is, from where they were.

    Args:
        student: scores the units; it is being trained meanwhile.
        examples: with the chunks that the first search starts from.
        options: the search: `sbc` moves boundaries from the last search's, `sbc-exact` finds the
            optimum.
        stage_marks: whether the number of its stage stands before each chunk in training; the
            search does not see it.
    """

    def __init__(
        self, student: Student, examples: Sequence[Example], options: ChunkOptions,
        stage_marks: bool = False,
    ) -> None:  # fmt: skip
        self.student, self.options, self.stage_marks = student, options, stage_marks
        self.examples = list(examples)

    def search(self) -> list[TokenizedExample]:
        """Returns the examples in tokens with the chunks of a new search."""
        training = self.student.model.training
        shares = chunk_shares(self.student, self.examples, self.options)
        found = shares.map(self._boundaries)
        self.student.model.train(training)
        return self.at(found)

    def _boundaries(self, examples: list[Example]) -> list[list[int]]:
        segmenter = Segmenter(self.student, examples, self.options)
        segmenter.start = [list(e.boundaries or (0, len(e.units)))[:-1] for e in examples]
        return segmenter.boundaries(self.options.method)

    def at(self, boundaries: Sequence[Sequence[int]]) -> list[TokenizedExample]:
        """Returns the examples in tokens with these boundaries; the next search starts there."""
        pairs = zip(self.examples, boundaries, strict=True)
        self.examples = [e.chunked(b) for e, b in pairs]
        marked = with_stage_marks(self.examples) if self.stage_marks else self.examples
        return [self.student.tokenize(e) for e in marked]
