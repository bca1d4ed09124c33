"""The student behind an OpenAI-compatible address: agents talk to it as to any other model.

    async with Gateway(tokenizer, model="student") as gateway:
        address = gateway.open(generate)             one session a rollout
        ... the agent talks to address.base_url ...
        report = gateway.close(address.id)           then generate.episode()

Whatever a session samples stays token ids; what an agent sends is context.
"""

from limbeck.gateway.report import SessionReport
from limbeck.gateway.server import Address, Gateway

__all__ = ["Address", "Gateway", "SessionReport"]
