"""Test `hymba serve` with langchain-openai.

    langchain_client.py URL
"""

import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

URL = f"{sys.argv[1]}/v1"
BASE = {"base_url": URL, "api_key": "none", "model": "hymba", "temperature": 0, "max_retries": 0, "timeout": 120}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=99)


def chat():
    model = ChatOpenAI(**BASE, max_tokens=32)
    messages = [SystemMessage("Be brief."), HumanMessage("Hello! Who are you?")]
    answer = model.invoke(messages)
    assert isinstance(answer, AIMessage) and answer.content and answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in model.stream(messages)) == answer.content
    assert model.invoke([*messages, answer, HumanMessage("And what can you do?")]).content
    assert len(model.batch(["Hi", "Hello", "Good day"])) == 3


def tools():
    model = ChatOpenAI(**BASE, max_tokens=80)
    ask = HumanMessage("What is 2 plus 3?")
    answer = model.bind_tools([add], tool_choice="add").invoke([ask])
    (call,) = answer.tool_calls
    result = ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"])
    after = model.bind_tools([add]).invoke([ask, answer, result])
    assert after.content or after.tool_calls


def structured_output():
    model = ChatOpenAI(**BASE, max_tokens=80)
    for method in ["json_schema", "function_calling"]:
        person = model.with_structured_output(Person, method=method).invoke("Tell me of Lily, who is six.")
        assert isinstance(person, Person), person


def completions():
    model = OpenAI(**BASE, max_tokens=12)
    assert model.invoke("Once upon a time")
    assert "".join(model.stream("Once upon a time")) == model.invoke("Once upon a time")


for case in [chat, tools, structured_output, completions]:
    case()
    print(f"langchain-openai: {case.__name__}: ok", flush=True)
