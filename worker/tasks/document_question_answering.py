"""document-question-answering: words of a page (LayoutLM), or an answer written by looking at it (Donut)."""

import shutil
from collections.abc import Hashable, Sequence
from typing import Any

import pytesseract
from transformers.pipelines.document_question_answering import ModelType

from tandem.errors import ConfigurationError, InvalidRequest
from tandem.specs.document_question_answering import DocumentQuestion, DocumentQuestionAnsweringParameters, WordBox
from worker.media.reader import MediaReader
from worker.tasks.pipeline_task import PipelinePiece, PipelineTask
from worker.tasks.positions import input_positions


class DocumentQuestionAnswering(PipelineTask[DocumentQuestionAnsweringParameters]):
    """Answers to a question about a page; a page longer than the model is several pieces.

    Pages read by their words share a forward. Donut's run one by one: the library puts its answers together wrongly.
    """

    generates = True

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._writes = pipeline.model_type == ModelType.VisionEncoderDecoder
        self._max_tokens = None if self._writes else input_positions(pipeline.model)

    def read(self, value: DocumentQuestion, media: MediaReader, param: str) -> dict[str, Any]:
        page: dict[str, Any] = {"question": value.question}
        if value.image is not None:
            page["image"] = media.image(value.image, f"{param}.image")
        elif self._writes:
            raise InvalidRequest(f"the model reads the image: give `{param}.image`", param=f"{param}.image")
        if value.word_boxes is not None:
            page["word_boxes"] = _whole(value.word_boxes)
        return page

    def options(self, parameters: DocumentQuestionAnsweringParameters) -> dict[str, Any]:
        options = super().options(parameters)
        # The library reads these from the input, or not at all.
        for name in ("word_boxes", "max_question_len"):
            options.pop(name, None)
        if self._max_tokens is not None:
            # Some tokenizers know no limit, and the library would take theirs.
            most = min(self._max_tokens, self.pipeline.tokenizer.model_max_length)
            options.setdefault("max_seq_len", most)
            if options["max_seq_len"] > self._max_tokens:
                raise InvalidRequest(
                    f"the model reads {self._max_tokens} tokens at once; lower `parameters.max_seq_len`",
                    param="parameters.max_seq_len",
                )
        return options

    def result(
        self, outputs: Sequence[Any], pieces: Sequence[PipelinePiece], parameters: DocumentQuestionAnsweringParameters
    ) -> Any:
        if not self._writes:
            for output, piece in zip(outputs, pieces, strict=True):
                # The padding of a batch is no part of the page.
                tokens = piece.model_inputs["attention_mask"].shape[-1]
                for name in ("start_logits", "end_logits", "attention_mask"):
                    output[name] = output[name][:, :tokens]
        return super().result(outputs, pieces, parameters)

    def _pieces(
        self, value: dict[str, Any], parameters: DocumentQuestionAnsweringParameters, name: str
    ) -> list[PipelinePiece]:
        page = dict(value)
        if parameters.word_boxes is not None:
            page.setdefault("word_boxes", _whole(parameters.word_boxes))
        if parameters.max_question_len is not None:
            page["question"] = self._cut(page["question"], parameters.max_question_len)
        self._require_ocr(page, name)
        try:
            return super()._pieces(page, parameters, name)
        except pytesseract.TesseractError as error:
            raise InvalidRequest(
                f"Tesseract could not read `{name}.image`: {error.message}", param="parameters.lang"
            ) from error
        except SystemExit as error:
            # So pytesseract takes its leave of a Tesseract that is too old.
            raise ConfigurationError(f"Tesseract cannot be used on this worker: {error}") from error

    def _company(self, inputs: dict[str, Any], forward: dict[str, Any]) -> Hashable:
        return object() if self._writes else super()._company(inputs, forward)

    def _cut(self, question: str, tokens: int) -> str:
        """The question's beginning, of at most so many tokens."""
        with self._preprocessing:
            encoded = self.pipeline.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        return question if len(ends) <= tokens else question[: ends[tokens - 1]]

    def _require_ocr(self, page: dict[str, Any], name: str) -> None:
        """Raises InvalidRequest if the page's words are to be read off its image and nothing here can do that."""
        if self._writes or "image" not in page:
            return
        processor_reads = getattr(self.pipeline.image_processor, "apply_ocr", False)
        if "word_boxes" in page and not processor_reads:
            return
        binary = pytesseract.pytesseract.tesseract_cmd
        if shutil.which(binary) is None:
            advice = (
                f"leave out `{name}.image`: your words are all that the model reads"
                if "word_boxes" in page
                else "send them as `parameters.word_boxes`, or install it"
            )
            raise InvalidRequest(
                f"the words of `{name}` with their boxes would be read off its image by `{binary}` (Tesseract OCR), "
                f"which is not on this worker: {advice}",
                param="parameters.word_boxes",
            )


def _whole(word_boxes: Sequence[WordBox]) -> list[tuple[str, list[int]]]:
    """With edges as the model's tables have them: whole thousandths, cut off as the library cuts its OCR's."""
    return [(word, [int(edge) for edge in box]) for word, box in word_boxes]
