"""Tasks that answer questions: about a text, about a table, and about whatever state a decision is taken in."""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import to_json

from tandem.specs.base import MAX_INPUT_CHARACTERS, MAX_INPUTS, InferenceBase, Spec, Text
from tandem.specs.media import Media

MAX_ANSWERS = 1000
"""Answers to one question: below the best few, scores tell nothing."""
MAX_WINDOW_TOKENS = 131_072
"""Tokens of a window, a question or an answer; the model's own limit is lower."""
MAX_COLUMNS = 256
"""Columns of a table, as TAPAS numbers them."""
MAX_CELLS = 65_536
"""Cells of a table: far above what any model reads of it."""
MAX_QUERIES = 64
"""Questions about one table."""
MAX_QUESTIONS = 64
"""Questions about one state: most models read a prompt for each."""
MAX_OPTIONS = 256
"""Options of a question; a model without labels of its own has 26 (A to Z)."""
MAX_ASSETS = 32
"""Images of one request."""
MAX_NAME_CHARACTERS = 256

Tokens = Annotated[int, Field(ge=1, le=MAX_WINDOW_TOKENS)]


class QuestionAboutText(Spec):
    """A question, and the text that holds its answer."""

    question: Text
    context: Text


class QuestionAnsweringParameters(Spec):
    """None takes the library's own default, which it fits to the model."""

    top_k: int | None = Field(default=None, ge=1, le=MAX_ANSWERS)
    """How many answers to return, best first: a list, if more than one."""
    doc_stride: Tokens | None = None
    """Tokens that two windows of a long context share."""
    max_answer_len: Tokens | None = None
    max_seq_len: Tokens | None = None
    """Tokens of a window, the question among them."""
    max_question_len: Tokens | None = None
    """A longer question is cut."""
    handle_impossible_answer: bool | None = None
    """Let the empty answer compete with the others."""
    align_to_words: bool | None = None
    """Extend answers to whole words."""


class QuestionAnsweringSpec(InferenceBase):
    """Questions about texts in, answers as they stand in the texts out."""

    task: Literal["question-answering"]
    inputs: QuestionAboutText | Annotated[tuple[QuestionAboutText, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    parameters: QuestionAnsweringParameters = QuestionAnsweringParameters()


Cell = Annotated[str, Field(max_length=MAX_INPUT_CHARACTERS)]
ColumnName = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]


class QuestionAboutTable(Spec):
    """A question, or several, and the table that answers them: the cells of each column by its name."""

    table: dict[ColumnName, Annotated[tuple[Cell, ...], Field(min_length=1)]] = Field(
        min_length=1, max_length=MAX_COLUMNS
    )
    query: Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_QUERIES)] = Field(
        validation_alias=AliasChoices("query", "question")
    )
    """Its other name is `question`."""

    @field_validator("table")
    @classmethod
    def _has_whole_rows(cls, table: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        heights = {name: len(cells) for name, cells in table.items()}
        if len(set(heights.values())) > 1:
            raise ValueError(f"the columns must have equally many cells, and have {heights}")
        if sum(heights.values()) > MAX_CELLS:
            raise ValueError(f"has {sum(heights.values())} cells, and at most {MAX_CELLS} are taken")
        return table


class TableQuestionAnsweringParameters(Spec):
    sequential: bool | None = None
    """Ask the questions about one table in turn, each in the light of the answer before it (models of SQA)."""
    padding: Literal["do_not_pad", "longest", "max_length"] | None = None
    truncation: bool | None = None
    """Drop the table's last rows until it fits the model, as by default; otherwise a larger one is refused."""


class TableQuestionAnsweringSpec(InferenceBase):
    """Questions about tables in; answers, their cells and how to join these out."""

    task: Literal["table-question-answering"]
    inputs: QuestionAboutTable | Annotated[tuple[QuestionAboutTable, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    parameters: TableQuestionAnsweringParameters = TableQuestionAnsweringParameters()


Content = str | dict[str, JsonValue] | list[JsonValue]
"""What a model reads as text, or as the JSON that it is."""


class NoulQuestion(Spec):
    """A question that is answered by how likely `true` is."""

    type: Literal["noul"]
    instructions: Content | None = None
    criteria: dict[Literal["true", "false"], Content | None] | None = None
    """What the two answers mean."""


class ChoiceQuestion(Spec):
    """A question that is answered by one of several options."""

    type: Literal["choice"]
    instructions: Content | None = None
    criteria: dict[Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)], Content | None] = Field(
        min_length=1, max_length=MAX_OPTIONS
    )
    """The options, each with what it means."""


class ScoreQuestion(Spec):
    """A question that is answered by a level on a scale."""

    type: Literal["score"]
    instructions: Content | None = None
    criteria: list[Content] = Field(min_length=1, max_length=MAX_OPTIONS)
    """What the levels mean, the lowest first."""


Question = Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class DecisionRequest(Spec):
    """A state, and the questions to decide in it."""

    state: Content
    questions: dict[Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)], Question] = Field(
        min_length=1, max_length=MAX_QUESTIONS
    )
    assets: dict[Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)], Media] = Field(
        default={}, max_length=MAX_ASSETS
    )
    """Images by the placeholder that stands for each in the texts above; for models that see images."""

    @field_validator("questions")
    @classmethod
    def _are_readable_with_the_state(
        cls, questions: dict[str, Question], info: ValidationInfo
    ) -> dict[str, Question]:
        state = info.data.get("state")  # absent where it is at fault itself
        size = len(to_json(state)) + sum(len(to_json(question)) for question in questions.values())
        if size > MAX_INPUT_CHARACTERS:
            raise ValueError(
                f"have {size} characters as JSON with the state; at most {MAX_INPUT_CHARACTERS} are taken"
            )
        return questions


class DecisionParameters(Spec):
    """There are none: everything is in the request."""


class DecisionSpec(InferenceBase):
    """States with questions in, a probability for every option out."""

    task: Literal["decision"]
    inputs: DecisionRequest | Annotated[tuple[DecisionRequest, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    parameters: DecisionParameters = DecisionParameters()
