"""An agent of the OpenAI Agents SDK, as its own documentation writes one."""

from __future__ import annotations

from agents import Agent, Runner, function_tool


@function_tool
def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return str(a + b)


agent = Agent(name="Adder", instructions="Use the tool.", tools=[add], model="student")


async def run(question, answer):
    result = await Runner.run(agent, question)
    return float(result.final_output == answer)
