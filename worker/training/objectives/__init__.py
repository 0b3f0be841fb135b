"""What a training learns: one objective for each task."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.specs import TrainingRow
from tandem.specs.finetune import FineTuneTask
from worker.training.objectives.headed import HeadedObjective
from worker.training.objectives.objective import Batch, Loss, Metric, Objective
from worker.training.objectives.question_answering import QuestionAnswering
from worker.training.objectives.text_classification import TextClassification
from worker.training.objectives.text_generation import TextGeneration
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
    training_rows: Sequence[TrainingRow],
) -> Objective:
    """The objective of `task` on `resident`, with rows of at most `max_tokens` or what the resident's context holds.

    Raises InvalidTrainingData for rows with fewer than two labels, and UnsupportedTask for a tokenizer that cannot
    be used.
    """
    if task == "text-generation":
        context = getattr(resident.config.get_text_config(), "max_position_embeddings", None)
        return TextGeneration(tokenizer, min(max_tokens, context or max_tokens))
    return HEADED[task](resident, tokenizer, max_tokens, training_rows)


__all__ = ["Batch", "HeadedObjective", "Loss", "Metric", "Objective", "objective_for"]
