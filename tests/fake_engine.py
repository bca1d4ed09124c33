"""A server of the student on loopback: it holds real weights, samples from them, takes new ones, and can lie about it.

    async with FakeEngine(lm) as server:
        ... server.url ...

It speaks SGLang's and vLLM's schemas. Weights come as a folder or as a pickle; sampling follows the request.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import threading
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from limbeck.models.sampling import draw
from limbeck.records import Sampling
from tests.fake_server import FakeServer

LOADING = threading.Lock()  # transformers changes torch's own functions meanwhile


def _read(folder: str) -> dict[str, torch.Tensor]:
    with LOADING:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


class FakeEngine(FakeServer):
    """Lies and faults are attributes, also while it runs; those of `FakeServer` that are about the wire work too."""

    routes = (
        *FakeServer.routes, "/update_weights_from_disk", "/begin_weight_update", "/update_weights_from_tensor",
        "/end_weight_update", "/collective_rpc", "/reset_prefix_cache",
    )  # fmt: skip

    def __init__(self, model: PreTrainedModel, **faults: Any) -> None:
        super().__init__(vocabulary=model.config.vocab_size, **faults)
        self.at_start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.net = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
        self.net.load_state_dict(self.at_start)
        self.version = "default"
        self.tensors_open = False
        self.dtype = torch.float32  # that it holds weights in; it computes in float32
        # lies
        self.keeps_old_weights = False  # accepts an update and does not make it
        self.spoils_weights = 0.0  # the output head that much too large
        self.refuses_weights = False
        self.raw_logprobs = False  # at temperature 1, as vLLM by default
        self.other_logprobs = 0.0  # nats
        self.hides_stop = False  # leaves the stop token out of the answer
        self.goes_on = False  # past the stop token
        self.breaks_off = False  # short of max_tokens, with the reason 'length'
        self.foreign_token = False  # an id that the student does not have
        self.hides_tops = False  # lists no most likely tokens
        self.restart_after: int | None = None  # responses, once

    def restart(self) -> None:
        """As a supervisor would: the weights it was started with, another version."""
        self.net.load_state_dict(self.at_start)
        self.version, self.tensors_open = "default", False

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> bool:
        routes = {
            "/update_weights_from_disk": self._from_disk,
            "/begin_weight_update": self._begin,
            "/update_weights_from_tensor": self._from_tensors,
            "/end_weight_update": self._end,
            "/collective_rpc": self._reload,
            "/reset_prefix_cache": lambda _: {},
        }
        if path in routes:
            self.bodies.append({"path": path, **body})
            if self.refuses_weights:
                return await self._send(writer, 400, b'{"success": false, "message": "no"}')
            return await self._send(writer, 200, json.dumps(routes[path](body)).encode())
        return await super()._answer(writer, path, body)

    # --- weights --------------------------------------------------------------------------------------

    def _from_disk(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._take(_read(body["model_path"]), body["weight_version"])

    def _begin(self, _: dict[str, Any]) -> dict[str, Any]:
        assert not self.tensors_open
        self.tensors_open = True
        return {"success": True}

    def _end(self, _: dict[str, Any]) -> dict[str, Any]:
        self.tensors_open = False
        return {"success": True}

    def _from_tensors(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.tensors_open
        (packed,) = body["serialized_named_tensors"]
        return self._take(dict(pickle.loads(base64.b64decode(packed))), body["weight_version"])

    def _reload(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["method"] == "reload_weights"
        self._take(_read(body["kwargs"]["weights_path"]), "default")
        return {"results": [None]}

    def _take(self, tensors: dict[str, torch.Tensor], version: str) -> dict[str, Any]:
        self.version = version
        if not self.keeps_old_weights and not self.refuses_weights:
            held = {name: tensor.float().to(self.dtype) for name, tensor in tensors.items()}
            self.net.load_state_dict(held, strict=False)
            with torch.no_grad():
                self.net.get_output_embeddings().weight.mul_(1 + self.spoils_weights)
        return {"success": True}

    # --- what it answers ------------------------------------------------------------------------------

    def truth(self, ids: Any, start: int, temperature: float) -> np.ndarray:
        with torch.inference_mode():
            logits = self.net(torch.tensor([list(ids)])).logits[0, start - 1 : -1].double()
        return torch.log_softmax(logits / temperature, dim=-1).numpy()

    def _sglang(self, body: dict[str, Any]) -> dict[str, Any]:
        params = body["sampling_params"]
        if not params["max_new_tokens"]:
            return super()._sglang(body)
        sampling = Sampling(
            params["temperature"], params["max_new_tokens"], tuple(params["stop_token_ids"]), params["sampling_seed"],
            params["top_p"], max(0, params["top_k"]), params["min_p"],
        )  # fmt: skip
        tokens, logprobs, tops, reason = self._sample(body["input_ids"], sampling, body["top_logprobs_num"])
        entries = [[value, token, None] for value, token in zip(logprobs, tokens, strict=True)]
        meta = {
            "finish_reason": {"type": reason}, "output_token_logprobs": entries, "weight_version": self.version,
            "weight_versions": [{"version": self.version, "start": 0, "end": len(tokens)}],
        }  # fmt: skip
        if body["top_logprobs_num"] and not self.hides_tops:
            meta["output_top_logprobs"] = [[[value, token, None] for token, value in row] for row in tops]
        meta |= {"id": body["rid"], "prompt_tokens": len(body["input_ids"])}
        return {"output_ids": tokens, "prompt_token_ids": body["input_ids"], "meta_info": meta}

    def _vllm(self, body: dict[str, Any]) -> dict[str, Any]:
        if "prompt_logprobs" in body:
            return super()._vllm(body)
        sampling = Sampling(
            body["temperature"] or 1.0, body["max_tokens"], tuple(body["stop_token_ids"]), body["seed"],
            body["top_p"], body["top_k"], body["min_p"], greedy=body["temperature"] == 0,
        )  # fmt: skip
        tokens, logprobs, tops, reason = self._sample(body["prompt"], sampling, body["logprobs"])
        found: dict[str, Any] = {"token_logprobs": logprobs}
        if not self.hides_tops:  # the sampled token first, then the K, of which it may be one
            rows = [[(t, x), *row] for t, x, row in zip(tokens, logprobs, tops, strict=True)]
            found["top_logprobs"] = [{f"token_id:{token}": value for token, value in row} for row in rows]
        choice = {"token_ids": tokens, "prompt_token_ids": body["prompt"], "logprobs": found, "finish_reason": reason}
        return {"id": f"cmpl-{body['request_id']}", "model": body["model"], "choices": [choice]}

    def _sample(
        self, prompt: list[int], sampling: Sampling, top: int
    ) -> tuple[list[int], list[float], list[list[tuple[int, float]]], str]:
        """Tokens, their log-probs, the `top` most likely at each position, and why it ended."""
        if self.restart_after is not None:
            self.restart_after -= 1
            if self.restart_after < 0:
                self.restart_after = None
                self.restart()
        uniforms, ids = np.random.default_rng(sampling.seed).random(sampling.max_tokens), list(prompt)
        logprobs, tops = [], []
        for uniform in uniforms:
            with torch.inference_mode():
                logits_1V = self.net(torch.tensor([ids])).logits[:, -1]
            token_1, at_T = draw(logits_1V, sampling, torch.tensor([uniform]))
            raw_V = torch.log_softmax(logits_1V, dim=-1)[0]
            value = float(raw_V[token_1[0]] if self.raw_logprobs else at_T[0]) - self.other_logprobs
            logprobs.append(value)
            best = (raw_V if self.raw_logprobs else (raw_V / sampling.temperature).log_softmax(-1)).topk(top)
            tops.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
            ids.append(int(token_1[0]))
            if ids[-1] in sampling.stop_ids and not self.goes_on:
                break
        tokens, reason = ids[len(prompt) :], "stop" if ids[-1] in sampling.stop_ids else "length"
        if self.hides_stop and reason == "stop":
            tokens, logprobs, tops = tokens[:-1], logprobs[:-1], tops[:-1]
        if self.breaks_off:
            half = sampling.max_tokens // 2
            tokens, logprobs, tops = tokens[:half], logprobs[:half], tops[:half]
        if self.foreign_token:
            tokens[0] = self.vocabulary + 3
        return tokens, logprobs, tops, reason
