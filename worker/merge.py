"""An adapter and its base as one model: `python -m worker.merge BASE ADAPTER OUT`, on a machine with the worker's
packages.

The result is a folder as `save_pretrained` writes it, in safetensors, with the base's tokenizer: for programs that
take no adapters. `tandem adapters merge` fetches the adapter, finds the base, and runs this.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.utils.hub import cached_file

from tandem.errors import InvalidRequest, TandemError
from tandem.specs.peft_config import CONFIG_FILE, MODEL_CONFIG_FILE

CLASSES: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "FEATURE_EXTRACTION": AutoModel,
}
"""PEFT's task type → the class of the models that do it. The head of the first three, the adapter brings."""
EMBEDDER_FILES = (
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""What sentence-transformers saves beside an embedder: how texts are cut, prompted and pooled, as for the base."""
EXIT_REFUSED = 2
"""Exit status for an adapter that cannot be merged; the reason is on standard error."""


def merge(base: str, adapter: Path, out: Path) -> None:
    """Write the model that `base` (a folder or hub id) is with the PEFT folder `adapter` in it, into a new folder.

    The weights have the base's own dtype. Raises InvalidRequest for an adapter that is no change of weights, and when
    `out` has files.
    """
    config = _config(adapter)
    if out.exists() and any(out.iterdir()):
        raise InvalidRequest(f"{out} is not empty: name a new folder", param="out")
    cls = CLASSES.get(str(config.task_type), AutoModelForCausalLM)
    options: dict[str, Any] = {"dtype": "auto", "use_safetensors": True, "trust_remote_code": False}
    if (adapter / MODEL_CONFIG_FILE).is_file():
        options["config"] = AutoConfig.from_pretrained(adapter)
    with warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5.23 has renamed; both names hold the same until v6.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # PEFT looks for AdaLoRA's ranks by LoRA's rule too, under which they match nothing.
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
        model = PeftModel.from_pretrained(cls.from_pretrained(base, **options), str(adapter))
        merged: Any = model.merge_and_unload(safe_merge=True)
    merged.save_pretrained(out)
    AutoTokenizer.from_pretrained(base, trust_remote_code=False).save_pretrained(out)
    if cls is AutoModel:
        _copy_embedder_files(base, out)


def _copy_embedder_files(base: str, out: Path) -> None:
    for name in EMBEDDER_FILES:
        path = cached_file(base, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(Path(path).read_bytes())


def _config(adapter: Path) -> PeftConfig:
    try:
        method = json.loads((adapter / CONFIG_FILE).read_bytes())["peft_type"]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"{adapter} is no PEFT folder: {error}", param="adapter") from error
    config: PeftConfig = PeftConfig.from_pretrained(str(adapter))
    if config.is_prompt_learning:
        raise InvalidRequest(
            f"{method} puts trained tokens before the text and changes no weight: it cannot be merged",
            param="adapter",
        )
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description="Merge an adapter into its base model.")
    parser.add_argument("base", help="a model's folder, or its id on the hub")
    parser.add_argument("adapter", type=Path, help="a PEFT folder")
    parser.add_argument("out", type=Path, help="a new folder")
    arguments = parser.parse_args()
    try:
        merge(arguments.base, arguments.adapter, arguments.out)
    except TandemError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
