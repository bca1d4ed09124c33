"""A ReAct agent of LangGraph."""

from __future__ import annotations

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent


@tool
def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return str(a + b)


def run(question, answer):
    graph = create_react_agent(ChatOpenAI(model="student"), [add])
    messages = graph.invoke({"messages": [("user", question)]})["messages"]
    return float(messages[-1].content == answer)
