"""A page on which a base model and its LoRA adapter answer side by side: `app.py` of a Hugging Face Space.

`python app.py` serves it on any machine, `python app.py --ask "Hello"` prints both greedy answers instead. It reads the
files beside it: settings.json and the folder `adapter`.
"""

import argparse
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

try:
    import spaces  # ZeroGPU lends a GPU for one answer; it has to be imported before torch
except ImportError:
    spaces = None
import gradio as gr
import torch
import transformers
from peft import PeftModel

HERE = Path(__file__).resolve().parent
ADAPTER = HERE / "adapter"
MAX_NEW_TOKENS, MOST_NEW_TOKENS = 512, 4096
Message = Mapping[str, Any]


def device() -> str:
    """The device that answers. On ZeroGPU it counts as there from the start."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class Chat:
    """The base with the adapter on it, and what turns messages into their tokens."""

    def __init__(self, settings: Mapping[str, Any], dtype: str) -> None:
        base = str(HERE / "base") if settings["base"] == "base" else settings["base"]
        auto_class = getattr(transformers, settings["auto_class"])
        model = auto_class.from_pretrained(base, revision=settings["revision"], dtype=dtype, use_safetensors=True)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(ADAPTER)
        self.model = PeftModel.from_pretrained(model, ADAPTER).to(device()).eval()
        self.text_config = model.config.get_text_config(decoder=True)
        self.settings = settings
        self.one_answer = threading.Lock()  # switching the adapter off holds for the whole model

    def ends(self) -> list[int]:
        """The tokens that end an answer: those of the base, and the one of the adapter's tokenizer."""
        own = self.model.generation_config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id}
        return sorted(token for token in ends if token is not None)

    def prompt(self, messages: Sequence[Message]) -> Any:
        """Ids and mask of a conversation, as the adapter was trained to read it; `[1, tokens]` each."""
        system = self.settings["system_prompt"]
        thinking = self.settings["enable_thinking"]
        prompt: Any = self.tokenizer.apply_chat_template(
            [*([{"role": "system", "content": system}] if system else []), *map(dict, messages)],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            **({} if thinking is None else {"enable_thinking": thinking}),
        )
        tokens, longest = prompt["input_ids"].shape[1], getattr(self.text_config, "max_position_embeddings", None)
        if longest is not None and tokens >= longest:
            raise gr.Error(f"The chat has {tokens:,} tokens; the model reads at most {longest:,}. Start a new chat.")
        return prompt

    def answer(
        self, messages: Sequence[Message], *, adapter: bool, max_new_tokens: int, temperature: float = 0.0
    ) -> Iterator[str]:
        """The answer as it grows, with or without the adapter; the most likely one at temperature 0."""
        prompt = self.prompt(messages).to(self.model.device)
        stop = threading.Event()
        streamer = transformers.TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling = {"do_sample": temperature != 0, "repetition_penalty": 1.0}  # not what the base's own settings say
        sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature != 0 else {}

        def generate() -> None:
            try:
                with self.one_answer, nullcontext() if adapter else self.model.disable_adapter(), torch.no_grad():
                    self.model.generate(
                        **prompt,
                        **sampling,
                        max_new_tokens=max_new_tokens,
                        eos_token_id=self.ends(),
                        pad_token_id=self.ends()[0] if self.ends() else None,
                        stopping_criteria=[lambda ids, _scores, **_: torch.full((len(ids),), stop.is_set())],
                        streamer=streamer,
                    )
            finally:
                streamer.end()  # also after an error: the page waits for it

        text = ""
        with ThreadPoolExecutor(1) as threads:
            generated = threads.submit(generate)
            try:
                for piece in streamer:
                    text += piece
                    yield text
            finally:  # the answer was stopped, or the page closed
                stop.set()
            generated.result()  # raises what went wrong
        yield text


def page(chat: Chat) -> gr.Blocks:
    """One question, two answers: first the adapter's, then the base's."""

    def ask(
        question: str, tuned: list[Message], plain: list[Message], max_new_tokens: float, temperature: float
    ) -> Iterator[Any]:
        if not question.strip():
            yield "", tuned, plain
            return
        columns = [[*column, {"role": "user", "content": question.strip()}] for column in (tuned, plain)]
        yield "", *columns
        for number, adapter in enumerate((True, False)):
            messages = columns[number]
            for text in chat.answer(
                [{"role": message["role"], "content": text_of(message["content"])} for message in messages],
                adapter=adapter,
                max_new_tokens=int(max_new_tokens),
                temperature=temperature,
            ):
                columns[number] = [*messages, {"role": "assistant", "content": text}]
                yield "", *columns

    if spaces is not None:
        ask = spaces.GPU(ask)
    title = chat.settings["title"]
    with gr.Blocks(title=title, fill_height=True, analytics_enabled=False) as demo:
        gr.Markdown(f"# {title}\n{chat.settings['description']}")
        tags = [("<think>", "</think>")]
        with gr.Row(equal_height=True):
            tuned = gr.Chatbot(label="Adapter", height="45vh", min_width=300, buttons=["copy_all"], reasoning_tags=tags)
            plain = gr.Chatbot(label="Base", height="45vh", min_width=300, buttons=["copy_all"], reasoning_tags=tags)
        question = gr.Textbox(show_label=False, container=False, placeholder="Ask both", autofocus=True)
        with gr.Row():
            send = gr.Button("Send", variant="primary", min_width=90)
            stop = gr.Button("Stop", min_width=90)
            gr.ClearButton([question, tuned, plain], value="New chat", min_width=90)
        with gr.Accordion("Settings", open=False):
            longest = gr.Slider(1, MOST_NEW_TOKENS, MAX_NEW_TOKENS, step=1, label="Max new tokens")
            temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0: always the most likely token")
        inputs, outputs = [question, tuned, plain, longest, temperature], [question, tuned, plain]
        answering = gr.on([question.submit, send.click], ask, inputs, outputs, show_progress="hidden")
        stop.click(None, cancels=[answering])
    return demo


def text_of(content: str | list[Mapping[str, Any]]) -> str:
    """The text of a message; Gradio gives it in parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def main() -> None:
    """Serves the page, or answers one question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ask", metavar="QUESTION", help="print the prompt's tokens and both answers as JSON, and end")
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    parser.add_argument("--base", help="another name or folder of the same base")
    parser.add_argument("--dtype", default="auto", help="auto: as the base is stored")
    args = parser.parse_args()
    settings = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
    chat = Chat({**settings, **({"base": args.base} if args.base else {})}, args.dtype)
    if args.ask is None:
        page(chat).launch(footer_links=["gradio"])
        return
    question = [{"role": "user", "content": args.ask}]
    answers = {
        name: list(chat.answer(question, adapter=adapter, max_new_tokens=args.max_new_tokens))[-1]
        for name, adapter in (("adapter", True), ("base", False))
    }
    print(json.dumps({"prompt": chat.prompt(question)["input_ids"][0].tolist(), **answers}))


if __name__ == "__main__":
    main()
