"""sentence-similarity: how near each of several sentences is to one, by the cosine of their embeddings."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tandem.specs import EmbeddingParameters
from tandem.specs.encoders import SentencesToCompare, SimilarityParameters
from worker.tasks.batched_task import BatchedTask, Pause
from worker.tasks.encoder_task import EncodedText
from worker.tasks.feature_extraction import FeatureExtraction

NORMALIZED = EmbeddingParameters(normalize=True)


class SentenceSimilarity(BatchedTask[SimilarityParameters, EncodedText]):
    """One cosine for each sentence; the pieces of an input are its source sentence and then the others."""

    def __init__(self, embeddings: FeatureExtraction) -> None:
        self._embeddings = embeddings

    def encode(
        self, inputs: Sequence[SentencesToCompare], parameters: SimilarityParameters, *, first: int = 0
    ) -> list[list[EncodedText]]:
        asked = EmbeddingParameters(truncate=parameters.truncate)
        pieces = []
        for place, value in enumerate(inputs):
            texts = [value.source_sentence, *value.sentences]
            names = [f"inputs[{first + place}].source_sentence"]
            names += [f"inputs[{first + place}].sentences[{number}]" for number in range(len(value.sentences))]
            pieces.append(self._embeddings.encode_named(texts, names, asked))
        return pieces

    def forward(self, pieces: Sequence[EncodedText], pause: Pause) -> Sequence[Tensor]:
        return self._embeddings.forward(pieces, pause)

    def result(self, outputs: Sequence[Any], pieces: Sequence[EncodedText], parameters: SimilarityParameters) -> Any:
        del parameters
        source, *others = (
            self._embeddings.vector(output, row, NORMALIZED) for output, row in zip(outputs, pieces, strict=True)
        )
        return [float(source @ other) for other in others]
