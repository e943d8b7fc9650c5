"""A program that speaks as `vllm serve` does where the studio speaks to it, and refuses what the real one refuses.

Arguments are those of vLLM (`engine/arg_utils.py`, `entrypoints/openai/cli_args.py`), fields those of its
CompletionRequest, routes those of `entrypoints/serve`. FOLDER/answers.json holds what it answers, by model and tokens.
"""

import argparse
import http.server
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
FIELDS = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty"),
    *("stop", "stop_token_ids", "stream", "stream_options", "return_token_ids"),
}
RANKS = [1, 8, 16, 32, 64, 128, 256, 320, 512]
DTYPES = ["auto", "half", "float16", "bfloat16", "float", "float32"]


class LoRAModules(argparse.Action):
    """As vLLM reads them: `name=path`, cut at every "=", or JSON where there is a comma."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        modules = {}
        for item in values:
            if "=" in item and "," not in item:
                name, path = item.split("=")
            else:
                given = json.loads(item)
                name, path = given.pop("name"), given.pop("path")
                if given.keys() - {"base_model_name"}:
                    parser.error(f"Invalid fields for --lora-modules: {item}")
            modules[name] = path
        setattr(namespace, self.dest, modules)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name", nargs="+", default=["base"])
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--revision")
    parser.add_argument("--generation-config", default="auto")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-loras", type=int, default=1)
    parser.add_argument("--max-lora-rank", type=int, choices=RANKS, default=16)
    parser.add_argument("--lora-modules", nargs="+", action=LoRAModules, default={})
    return parser.parse_args(sys.argv[2:])


class Handler(http.server.BaseHTTPRequestHandler):
    loras: dict[str, str]
    given: argparse.Namespace

    def do_GET(self) -> None:
        self.reply(200 if self.path == "/health" else 404, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            return self.refuse(401, "Unauthorized")
        if self.path == "/v1/completions":
            return self.complete(body)
        if self.path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter") and self.updates():
            return self.change(self.path.split("/")[2].split("_")[0], body)
        self.refuse(404, "Not Found")

    def updates(self) -> bool:
        return self.given.enable_lora and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "True"

    def change(self, kind: str, body: dict[str, Any]) -> None:
        name = body["lora_name"]
        if (name in self.loras) == (kind == "load"):
            return self.refuse(404, f"The lora adapter {name!r} is already or never loaded.")
        if kind == "load":
            self.loras[name] = body["lora_path"]
        else:
            del self.loras[name]
        file = FOLDER / "loras.json"
        told = json.loads(file.read_text()) if file.exists() else []
        file.write_text(json.dumps([*told, [kind, name]]))
        self.reply(200, f"Success: LoRA adapter {name!r}.".encode())

    def complete(self, body: Mapping[str, Any]) -> None:
        if body.keys() - FIELDS:
            return self.refuse(400, f"unknown fields {body.keys() - FIELDS}")
        model = body["model"]
        if model not in (*self.given.served_model_name, *self.loras):
            return self.refuse(404, f"The model `{model}` does not exist.")
        at_start = self.given.lora_modules.get(model) is not None
        who = model if model in self.given.served_model_name or at_start else self.loras[model]
        answers = json.loads((FOLDER / "answers.json").read_text())
        text, tokens, finish, *ids = answers[who + str(body["prompt"])]
        longest = self.given.max_model_len
        if longest is not None and len(body["prompt"]) + body["max_tokens"] > longest:
            return self.refuse(400, f"This model's maximum context length is {longest} tokens.")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        stop = min((text.find(each) for each in body["stop"] if each in text), default=None)
        text, reason = (text[:stop], body["stop"][0]) if stop is not None else (text, None)
        try:
            for count in range(1, 10_000 if finish == "endless" else 2):
                self.event(text, count if finish == "endless" else tokens, None, None, *ids)
                time.sleep(0.01)
            self.event("", tokens, "length" if finish == "length" and reason is None else "stop", reason)
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            return

    def event(self, text: str, tokens: int, finish: str | None, reason: str | None, ids: Any = None) -> None:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": reason}
        choice["token_ids"] = ids
        chunk = {"choices": [choice], "usage": {"completion_tokens": tokens}}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def refuse(self, status: int, message: str) -> None:
        self.reply(status, json.dumps({"error": {"message": message, "code": status}}).encode())

    def reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        pass


def check_devices() -> None:
    """As `Platform.device_id_to_physical_device_id` of vLLM before #45026: each visible device has to be a number."""
    for name in filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")):
        int(name)


if __name__ == "__main__":
    check_devices()
    (FOLDER / "words.json").write_text(json.dumps(sys.argv[2:]))
    if (FOLDER / "broken").exists():
        sys.exit(3)
    Handler.given = arguments()
    Handler.loras = dict(Handler.given.lora_modules)
    http.server.ThreadingHTTPServer(("127.0.0.1", Handler.given.port), Handler).serve_forever()
