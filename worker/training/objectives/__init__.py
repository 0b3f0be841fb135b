"""What a training learns: one objective for each task."""

from collections.abc import Iterable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.errors import InvalidRequest
from tandem.specs import TrainingRow
from tandem.specs.finetune import MIN_ROW_TOKENS, FineTuneTask, ObjectiveSpec, SupervisedObjective
from worker.training.objectives.feature_extraction import FeatureExtraction
from worker.training.objectives.headed import HeadedObjective
from worker.training.objectives.objective import Batch, BatchLoss, Loss, Metric, Objective
from worker.training.objectives.preferences import Preferences
from worker.training.objectives.question_answering import QuestionAnswering
from worker.training.objectives.text_classification import TextClassification
from worker.training.objectives.text_generation import TextGeneration
from worker.training.objectives.text_to_text import TextToText
from worker.training.objectives.token_classification import TokenClassification

HEADED: dict[FineTuneTask, type[TextClassification | TokenClassification | QuestionAnswering]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
}


def objective_for(
    task: FineTuneTask,
    resident: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    training_rows: Iterable[TrainingRow],
    virtual_tokens: int = 0,
    objective: ObjectiveSpec = SupervisedObjective(),  # noqa: B008 - it never changes
) -> Objective:
    """The objective of `task` on `resident`, with rows of at most `max_tokens` or what the resident's context holds.

    `virtual_tokens` of the adapter stand before each row. Raises InvalidRequest where they leave no room for one, or
    stand before a task's rows that have none; InvalidTrainingData for rows with fewer than two labels, and
    UnsupportedTask for a tokenizer that cannot be used; and InvalidModel for a pooling that is not served.
    """
    if task == "text-generation":
        max_tokens = min(max_tokens, _row_tokens(resident, virtual_tokens) or max_tokens)
        if objective.type == "dpo":
            return Preferences(tokenizer, max_tokens, beta=objective.beta)
        return TextGeneration(tokenizer, max_tokens)
    if virtual_tokens:
        raise InvalidRequest(
            f"virtual tokens are for text-generation: for {task} use lora or ia3", param="method.type"
        )
    if task == "text2text-generation":
        return TextToText(resident, tokenizer, max_tokens)
    if task == "feature-extraction":
        return FeatureExtraction(resident, tokenizer, max_tokens)
    return HEADED[task](resident, tokenizer, max_tokens, training_rows)


def _row_tokens(resident: PreTrainedModel, virtual_tokens: int) -> int | None:
    """Tokens of a row that the model reads after the virtual ones; None where it does not say how many it reads."""
    context: int | None = getattr(resident.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return None
    if context - virtual_tokens < MIN_ROW_TOKENS:
        raise InvalidRequest(
            f"the model reads {context} tokens, so {virtual_tokens} virtual ones leave no room for a row: "
            f"{context - MIN_ROW_TOKENS} is the most",
            param="method.num_virtual_tokens",
        )
    return context - virtual_tokens


__all__ = ["Batch", "BatchLoss", "HeadedObjective", "Loss", "Metric", "Objective", "objective_for"]
