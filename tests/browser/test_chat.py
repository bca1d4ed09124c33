"""The chat view and the raw tokens of a rollout: turns by the special tokens, in each of the usual templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


ROLES = "return [...document.querySelectorAll(arguments[0])].map(e => e.firstChild.data)"


def roles(page: Page, selector: str) -> list[str]:
    found: list[str] = page.run(ROLES, selector)
    return found


def test_a_tool_call_is_shown_as_a_turn_and_as_raw_tokens(page: Page, tmp_path: Path, served: Served) -> None:
    """The text of the messages has an empty `assistant:` where the call is; the tokens have it."""
    response = ["It", " is", " 4", ".", "<|im_end|>"]
    text = "system: Be brief.\nuser: What is 2+2?\nassistant: \nuser: 4"
    page.open(served(_written(tmp_path / "tools", CHATML, response, prompt_text=text)) + "#samples")
    page.until("document.querySelectorAll('.flow .t').length === 5")
    assert roles(page, ".chat .turn h4") == ["system", "user", "assistant", "user"]
    assert page.texts(".chat .turn pre") == ["Be brief.", "What is 2+2?", "4"]
    assert page.texts(".chat .call b") == ["calls add", "result"]
    assert (page.texts(".chat .call dt"), page.texts(".chat .call dd")) == (["a"], ["2"])
    assert roles(page, ".flow .role") == ["assistant"], "the response is the last turn"
    assert page.texts(".flow .t") == response
    page.press(".prompt .segments button", "Raw tokens")
    page.until("document.querySelector('.raw')")
    assert page.texts(".raw .p") == [token.replace("\n", "↵\n") for token in CHATML]
    assert page.run("return document.querySelectorAll('.raw .special').length") == 9
    assert page.texts(".flow .role") == []
    assert page.texts(".flow .t") == response
    hover(page, 2)
    assert page.run("return location.hash").endswith("shape=raw")
    page.press(".prompt .segments button", "Chat")
    page.until("document.querySelectorAll('.turn').length === 5")
    assert page.texts(".turn.said pre") == ["It is 4."]
    assert page.texts(".turn.said .turn-facts span")[0] == "5 tokens"


def test_the_turns_within_a_response_have_their_roles(page: Page, tmp_path: Path, served: Served) -> None:
    response = ["call", "<|im_end|>", "\n", "<|im_start|>", "tool", "\n", "4", "<|im_end|>", "\n"]
    response += ["<|im_start|>", "assistant", "\n", "It is 4", "<|im_end|>"]
    page.open(served(_written(tmp_path / "agent", CHATML[6:13] + CHATML[-3:], response)) + "#samples")
    page.until("document.querySelectorAll('.flow .t').length === 14")
    assert roles(page, ".flow .role") == ["assistant", "tool", "assistant"]
    assert page.texts(".flow .t") == [token.replace("\n", "↵\n") for token in response]
    page.run("document.querySelector('.flow').focus()")
    for _ in range(5):
        page.run("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert page.run("return document.querySelector('.flow .at').dataset.i") == "4", "arrow keys walk over the roles"


def test_an_episode_of_several_turns_is_a_conversation(page: Page, tmp_path: Path, served: Served) -> None:
    """As it was recorded, whatever the template: with what each turn of the student took and got."""
    call = '<tool_call>{"name": "search", "arguments": "{\\"query\\": \\"tides\\", \\"most\\": 3}"}'
    response = [call, "<|end|>", "high", " at noon", "<think>", "So", "</think>", "Noon.", "<|end|>"]
    turns = [
        {"start": 0, "end": 2, "role": "student", "text": call, "finish": "length", "reward": None},
        {"start": 2, "end": 4, "role": "tool", "text": "high\nat noon", "finish": None, "reward": None},
        {"start": 4, "end": 9, "role": "student", "text": "Noon.", "finish": "stop", "reward": 0.5},
    ]
    trained = [role != "tool" for role in ["s", "s", "tool", "tool", "s", "s", "s", "s", "s"]]
    folder = _written(tmp_path / "episode", ["when?"], response, turns=turns, trained=trained, prompt_text="when?")
    page.open(served(folder) + "#samples?shape=chat")
    page.until("document.querySelectorAll('.turn').length === 4")
    assert roles(page, ".turn h4") == ["prompt", "student", "tool", "student"]
    assert page.texts(".call b") == ["calls search"], "a call that is not closed, with arguments as text"
    assert page.texts(".call dd") == ["tides", "3"]
    assert page.texts(".turn.asked pre") == ["when?", "high\nat noon"]
    assert page.texts(".turn.said:last-child pre") == ["So", "Noon."]
    assert page.texts(".turn.said .flag") == ["cut at its limit"]
    assert page.texts(".turn.said:last-child .turn-facts span")[-1] == "reward 0.50"
    page.press(".prompt .segments button", "Tokens")
    page.until("document.querySelectorAll('.flow .t').length === 9")
    assert roles(page, ".flow .role") == ["student", "tool", "student"]


def test_a_prompt_without_turns_is_its_text(page: Page, tmp_path: Path, served: Served) -> None:
    page.open(served(_written(tmp_path / "plain", ["12", "+", "34", "="], ["46"], prompt_text="12+34=")) + "#samples")
    page.until("document.querySelector('.prompt pre')")
    assert page.texts(".prompt pre") == ["12+34="]
    assert roles(page, ".turn h4") == ["prompt"]
    assert roles(page, ".flow .role") == ["student"]
    page.press(".prompt .segments button", "Raw tokens")
    page.until("document.querySelectorAll('.raw .p').length === 4")


def test_a_file_without_prompt_tokens_shows_its_text(page: Page, tmp_path: Path, served: Served) -> None:
    page.open(served(_written(tmp_path / "old", [], ["46"], prompt_text="12+34=")) + "#samples")
    page.until("document.querySelector('.prompt pre')")
    assert page.texts(".prompt pre") == ["12+34="]
    assert page.texts(".prompt .segments button") == ["Chat", "Tokens"]


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


def test_the_usual_templates_are_split(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    script = """
      const [all, done] = arguments;
      import('/assets/chat.js').then((chat) =>
        done(all.map((tokens) => chat.turnsOf(tokens).map((turn) => [turn.role, chat.saidIn(tokens, turn)]))))
    """
    found = page.driver.execute_async_script(script, [tokens for tokens, _ in TEMPLATES.values()])
    for name, turns in zip(TEMPLATES, found, strict=True):
        assert turns == [list(turn) for turn in TEMPLATES[name][1]], name


CALLS = {
    "hermes": ('<tool_call>\n{"name": "f", "arguments": {"x": [1]}}\n</tool_call>', [["f", [["x", "[1]"]]]]),
    "two": ('<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>', [["f", []], ["g", []]]),
    "qwen": ("<tool_call><function=f><parameter=x>\n1\n</parameter></function></tool_call>", [["f", [["x", "1"]]]]),
    "mistral": ('[TOOL_CALLS][{"name": "f", "arguments": {"x": null}}]</s>', [["f", [["x", "null"]]]]),
    "llama": ('{"name": "f", "parameters": {"x": "y"}}', [["f", [["x", "y"]]]]),
    "python tag": ('<|python_tag|>{"name": "f", "parameters": {}}<|eom_id|>', [["f", []]]),
    "nested": (
        '<tool_call>{"function": {"name": "f", "arguments": "no JSON"}}</tool_call>',
        [["f", [["", "no JSON"]]]],
    ),
    "broken": ("<tool_call>{name: f}</tool_call>", [None]),
    "no object": ("<tool_call>[null, 3]</tool_call>", [None]),
    "none": ('{"answer": 4}', []),
}
PARTS = {
    "": [],
    "a\nb": [["text", "a\nb"]],
    "so\n</think>\n\n4": [["thinking", "so"], ["text", "4"]],
    "<think>so</think>4": [["thinking", "so"], ["text", "4"]],
    "<think>so": [["thinking", "so"]],
    "See\n```python\n1 < 2\n```\nthere": [["text", "See"], ["code", "python\n1 < 2"], ["text", "there"]],
    "a<tool_response>b</tool_response>c": [["text", "a"], ["result", "b"], ["text", "c"]],
}


def test_what_is_said_is_split_into_thinking_calls_and_results(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    script = """
      const [texts, done] = arguments;
      import('/assets/speech.js').then((speech) => done(texts.map((text) => speech.partsOf(text))))
    """
    found = page.driver.execute_async_script(script, [text for text, _ in CALLS.values()])
    for (name, (_, expected)), parts in zip(CALLS.items(), found, strict=True):
        calls = [call for part in parts if part["kind"] == "call" for call in part["calls"] or [None]]
        assert calls == expected, name
    found = page.driver.execute_async_script(script, list(PARTS))
    for text, parts in zip(PARTS, found, strict=True):
        assert [[part["kind"], part["text"]] for part in parts] == PARTS[text], text
