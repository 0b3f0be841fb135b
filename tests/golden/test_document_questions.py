"""Questions about pages: where their words come from, and what does not fit the model."""

import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytesseract
import pytest

from tandem.errors import ConfigurationError, InvalidRequest
from tests.golden.media_jobs import Asked, same, sent
from tests.golden.media_jobs import MediaJobs as MediaJobs
from tests.golden.multimodal_inputs import DOCUMENTS, by_the_library

DOCUMENT_QUESTIONS = "document-question-answering"

Loaded = Callable[[str, str], MediaJobs]


@pytest.fixture(scope="module")
def loaded(tiny_folder: Callable[[str], Path]) -> Loaded:
    """Each task on each model, once."""
    return cache(lambda task, model: MediaJobs(task, tiny_folder(model)))


class TestDocuments:
    @pytest.fixture(autouse=True)
    def _without_tesseract(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", "no-tesseract")
        # The version is asked for once and kept; in this state it has not been asked for.
        version = pytesseract.pytesseract.get_tesseract_version
        monkeypatch.setattr(version, "_result", version)

    def question(self, **more: Any) -> dict[str, Any]:
        return {"image": sent(DOCUMENTS[0]["image"]), "question": "what is the total price?", **more}

    def test_words_may_come_with_the_parameters(self, loaded: Loaded) -> None:
        """In pairs, or in huggingface_hub's form, a word and its box by turns; edges may be floats."""
        jobs = loaded(DOCUMENT_QUESTIONS, "tiny-layoutlm")
        boxes = DOCUMENTS[0]["word_boxes"]
        flat = [item for word, box in boxes for item in (word, [edge + 0.5 for edge in box])]
        [[pairs], [turns]] = jobs.run(
            Asked(self.question(), {"word_boxes": boxes}), Asked(self.question(), {"word_boxes": flat})
        )
        same(
            pairs, by_the_library(jobs, {**self.question(), "image": DOCUMENTS[0]["image"], "word_boxes": boxes}, {})
        )
        assert turns == pairs

    def test_without_words_or_tesseract_the_error_says_what_to_send(self, loaded: Loaded) -> None:
        [error] = loaded(DOCUMENT_QUESTIONS, "tiny-layoutlm").run(Asked(self.question()))
        assert isinstance(error, InvalidRequest)
        assert error.param == "parameters.word_boxes"
        assert "`no-tesseract` (Tesseract OCR)" in error.message
        assert "send them as `parameters.word_boxes`" in error.message

    def test_tesseract_reads_the_words_where_it_is(
        self, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A program in its place answers as Tesseract would, and keeps what it was asked."""
        monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", _program(tmp_path, "tesseract 5.3.0"))
        jobs = loaded(DOCUMENT_QUESTIONS, "tiny-layoutlm")
        [[row]] = jobs.run(Asked(self.question(), {"lang": "deu", "tesseract_config": "--psm 6"}))
        page = DOCUMENTS[0]["image"]
        boxes = [
            (word, [int(1000 * left / page.width), 62, int(1000 * (left + 50) / page.width), 156])
            for word, left in (("Anna", 10), ("total", 70))
        ]
        same(row, by_the_library(jobs, {**self.question(), "image": page, "word_boxes": boxes}, {}))
        asked = (tmp_path / "asked").read_text()
        assert "-l deu" in asked
        assert "--psm 6" in asked

    def test_a_tesseract_that_fails_is_the_jobs_error(
        self, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = _program(tmp_path, "tesseract 5.3.0", fails="no language `xyz`")
        monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", program)
        [error] = loaded(DOCUMENT_QUESTIONS, "tiny-layoutlm").run(Asked(self.question(), {"lang": "xyz"}))
        assert isinstance(error, InvalidRequest)
        assert error.message == "Tesseract could not read `inputs[0].image`: no language `xyz`"

    def test_a_tesseract_that_is_too_old_does_not_end_the_worker(
        self, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """pytesseract ends the program that uses it."""
        monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", _program(tmp_path, "tesseract 2.0"))
        [error] = loaded(DOCUMENT_QUESTIONS, "tiny-layoutlm").run(Asked(self.question()))
        with pytest.raises(ConfigurationError, match="Invalid tesseract version"):
            raise error

    def test_a_question_is_cut_where_asked(self, loaded: Loaded) -> None:
        jobs = loaded(DOCUMENT_QUESTIONS, "tiny-layoutlm")
        boxes = DOCUMENTS[0]["word_boxes"]
        [[row]] = jobs.run(Asked(self.question(), {"word_boxes": boxes, "max_question_len": 2}))
        page = {"image": DOCUMENTS[0]["image"], "word_boxes": boxes}
        same(row, by_the_library(jobs, {**page, "question": "what is"}, {}))

    @pytest.mark.parametrize(
        ("parameters", "message", "param"),
        [
            (
                {"max_seq_len": 200},
                "reads 128 tokens at once; lower `parameters.max_seq_len`",
                "parameters.max_seq_len",
            ),
            ({"max_seq_len": 20, "doc_stride": 100}, "stride", "inputs[0]"),
            ({"max_seq_len": 4}, r"inputs\[0\] cannot be used: .*too short", "inputs[0]"),
        ],
        ids=str,
    )
    def test_windows_that_do_not_fit_are_refused(
        self, parameters: dict[str, Any], message: str, param: str, loaded: Loaded
    ) -> None:
        asked = Asked(self.question(word_boxes=DOCUMENTS[0]["word_boxes"]), parameters)
        [error] = loaded(DOCUMENT_QUESTIONS, "tiny-layoutlm").run(asked)
        with pytest.raises(InvalidRequest, match=message):
            raise error
        assert error.param == param

    def test_donut_needs_the_image(self, loaded: Loaded) -> None:
        page = {"question": "who?", "word_boxes": DOCUMENTS[0]["word_boxes"]}
        [error] = loaded(DOCUMENT_QUESTIONS, "tiny-donut").run(Asked(page))
        assert isinstance(error, InvalidRequest)
        assert error.param == "inputs[0].image"


def _program(folder: Path, version: str, *, fails: str = "") -> str:
    """A program that answers as Tesseract does, and writes what it was asked into `asked`."""
    columns = "level page_num block_num par_num line_num word_num left top width height conf text"
    rows = [columns, "5 1 1 1 1 0 10 10 50 15 90 Anna", "5 1 1 1 1 1 70 10 50 15 90 total"]
    table = "\n".join(row.replace(" ", "\t") for row in rows)
    program = folder / "tesseract"
    program.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo "{version}"; exit; fi\n'
        f"if [ -n '{fails}' ]; then echo '{fails}' >&2; exit 1; fi\n"
        f'echo "$@" > {folder}/asked\n'
        f'cat > "$2.tsv" <<END\n{table}\nEND\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)
