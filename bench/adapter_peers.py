"""How PEFT itself serves a batch of several adapters: `adapter_names`, and one group of rows after the other."""

import time
from collections import defaultdict
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from bench.decoder import Request, load_plain
from bench.generate_peers import check, wanted_tokens
from bench.rounds import Work


class Peft:
    """A PEFT model with several adapters loaded. The requests have one length, and so have their answers."""

    def __init__(self, folders: Many[Path]) -> None:
        model, self._tokenizer = load_plain()
        self._tokenizer.padding_side = "left"
        self._names = [f"bench{number}" for number in range(len(folders))]
        # Any: a PEFT model passes on what it does not know to the model inside.
        self._model: Any = PeftModel.from_pretrained(model, folders[0], adapter_name=self._names[0])
        for name, folder in zip(self._names[1:], folders[1:], strict=True):
            self._model.load_adapter(folder, adapter_name=name)
        self._model.eval()

    def base(self, requests: Many[Request]) -> Work:
        """No adapter at all: what the others are measured by."""
        started = time.perf_counter()
        with self._model.disable_adapter():
            self._generate(requests)
        return Work(wanted_tokens(requests), time.perf_counter() - started)

    def adapter_names(self, requests: Many[Request]) -> Work:
        """One batch in which each row names its adapter; the adapters take turns over the rows."""
        started = time.perf_counter()
        self._generate(requests, adapter_names=[self._name(row) for row in range(len(requests))])
        return Work(wanted_tokens(requests), time.perf_counter() - started)

    def group_by_group(self, requests: Many[Request]) -> Work:
        """For each adapter, `set_adapter` and a batch of its rows."""
        started = time.perf_counter()
        groups: dict[str, list[Request]] = defaultdict(list)
        for row, request in enumerate(requests):
            groups[self._name(row)].append(request)
        for name, group in groups.items():
            self._model.set_adapter(name)
            self._generate(group)
        return Work(wanted_tokens(requests), time.perf_counter() - started)

    def _name(self, row: int) -> str:
        return self._names[row % len(self._names)]

    @torch.inference_mode()
    def _generate(self, requests: Many[Request], **options: Any) -> None:
        inputs = self._tokenizer([request.prompt for request in requests], padding=True, return_tensors="pt")
        longest = max(request.new_tokens for request in requests)
        output = self._model.generate(**inputs, max_new_tokens=longest, do_sample=False, **options)
        check(output.shape[1] - inputs.input_ids.shape[1], longest)
