"""The chat view and the raw tokens of a rollout: turns by the special tokens, in each of the usual templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.training.recording import write_rollouts
from tests.view import made

from .looking import Served, hover
from .page import Page

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
CHATML = [
    "<|im_start|>", "system", "\n", "Be brief.", "<|im_end|>", "\n",
    "<|im_start|>", "user", "\n", "What is", " 2+2?", "<|im_end|>", "\n",
    "<|im_start|>", "assistant", "\n", CALL, "<|im_end|>", "\n",
    "<|im_start|>", "user", "\n", "<tool_response>4</tool_response>", "<|im_end|>", "\n",
    "<|im_start|>", "assistant", "\n",
]  # fmt: skip


def _written(folder: Path, prompt: list[str], response: list[str], **more: Any) -> Path:
    made.write_metrics(folder, 3)
    row = made.rollout(1, 0, len(response), prompt_tokens=prompt, prompt_ids=list(range(len(prompt))), **more)
    row |= {"tokens": response, "special": [token.startswith("<|") for token in response]}
    (folder / "rollouts").mkdir()
    write_rollouts([row], folder / "rollouts" / "step-000001.parquet")
    return folder


def test_a_tool_call_is_shown_as_a_turn_and_as_raw_tokens(page: Page, tmp_path: Path, served: Served) -> None:
    """The text of the messages has an empty `assistant:` where the call is; the tokens have it."""
    response = ["It", " is", " 4", ".", "<|im_end|>"]
    text = "system: Be brief.\nuser: What is 2+2?\nassistant: \nuser: 4"
    page.open(served(_written(tmp_path / "tools", CHATML, response, prompt_text=text)) + "#tokens")
    page.until("document.querySelectorAll('.flow .t').length === 5")
    turns = list(zip(page.texts(".turn h4"), page.texts(".turn pre"), strict=True))
    assert turns == [
        ("system", "Be brief."),
        ("user", "What is 2+2?"),
        ("assistant", CALL),
        ("user", "<tool_response>4</tool_response>"),
    ]
    assert page.texts(".flow .role") == ["assistant"], "the response is the last turn"
    assert page.texts(".flow .t") == response
    page.press(".prompt .segments button", "Raw tokens")
    page.until("document.querySelector('.raw')")
    assert page.texts(".raw .p") == [token.replace("\n", "↵\n") for token in CHATML]
    assert page.run("return document.querySelectorAll('.raw .special').length") == 9
    assert page.texts(".flow .role") == []
    assert page.texts(".flow .t") == response
    hover(page, 2)
    page.press(".prompt .segments button", "Chat")
    page.until("document.querySelectorAll('.turn').length === 4")


def test_the_turns_within_a_response_have_their_roles(page: Page, tmp_path: Path, served: Served) -> None:
    response = ["call", "<|im_end|>", "\n", "<|im_start|>", "tool", "\n", "4", "<|im_end|>", "\n"]
    response += ["<|im_start|>", "assistant", "\n", "It is 4", "<|im_end|>"]
    page.open(served(_written(tmp_path / "agent", CHATML[6:13] + CHATML[-3:], response)) + "#tokens")
    page.until("document.querySelectorAll('.flow .t').length === 14")
    assert page.texts(".flow .role") == ["assistant", "tool", "assistant"]
    assert page.texts(".flow .t") == [token.replace("\n", "↵\n") for token in response]
    page.run("document.querySelector('.flow').focus()")
    for _ in range(5):
        page.run("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert page.run("return document.querySelector('.flow .at').dataset.i") == "4", "arrow keys walk over the roles"


def test_a_prompt_without_turns_is_its_text(page: Page, tmp_path: Path, served: Served) -> None:
    page.open(served(_written(tmp_path / "plain", ["12", "+", "34", "="], ["46"], prompt_text="12+34=")) + "#tokens")
    page.until("document.querySelector('.prompt pre')")
    assert page.texts(".prompt pre") == ["12+34="]
    assert page.texts(".flow .role") == page.texts(".turn") == []
    page.press(".prompt .segments button", "Raw tokens")
    page.until("document.querySelectorAll('.raw .p').length === 4")


def test_a_file_without_prompt_tokens_shows_its_text(page: Page, tmp_path: Path, served: Served) -> None:
    page.open(served(_written(tmp_path / "old", [], ["46"], prompt_text="12+34=")) + "#tokens")
    page.until("document.querySelector('.prompt pre')")
    assert page.texts(".prompt pre") == ["12+34="]
    assert page.run("return document.querySelector('.prompt .segments')") is None


WIDE = "\uff5c"
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n", "Hi", "<|eot_id|>"]
TEMPLATES = {
    "chatml": (CHATML[6:13], [("user", "What is 2+2?")]),
    "llama": ([*LLAMA, "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"],
              [("user", "Hi"), ("assistant", "")]),
    "gemma": (["<bos>", "<start_of_turn>", "user", "\n", "Hi", "<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"],
              [("user", "Hi"), ("model", "")]),
    "phi": (["<|system|>", "Be brief", "<|end|>", "<|user|>", "Hi", "<|end|>", "<|assistant|>"],
            [("system", "Be brief"), ("user", "Hi"), ("assistant", "")]),
    "mistral": (["<s>", "[AVAILABLE_TOOLS]", "[]", "[/AVAILABLE_TOOLS]", "[INST]", "Hi", "[/INST]"],
                [("tools", "[]"), ("user", "Hi"), ("assistant", "")]),
    "deepseek": ([f"<{WIDE}User{WIDE}>", "Hi", f"<{WIDE}Assistant{WIDE}>", "<think>"],
                 [("user", "Hi"), ("assistant", "<think>")]),
    "harmony": (["<|start|>", "assistant", "<|channel|>", "analysis", "<|message|>", "So", "<|end|>"],
                [("assistant, analysis", "So")]),
    "cut": (["<|im_start|>", "assistant"], [("assistant", "")]),
    "none": (["a", "<b>", "c"], [("", "a<b>c")]),
    "nothing": ([], []),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_usual_templates_are_split(page: Page, run: Path, served: Served, name: str) -> None:
    tokens, expected = TEMPLATES[name]
    page.open(served(run))
    script = """
      const [tokens, done] = arguments;
      import('/assets/chat.js').then((chat) =>
        done(chat.turnsOf(tokens).map((turn) => [turn.role, chat.saidIn(tokens, turn)])))
    """
    assert page.driver.execute_async_script(script, tokens) == [list(turn) for turn in expected]
