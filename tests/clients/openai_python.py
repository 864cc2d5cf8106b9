"""Test `hymba serve` with openai-python; every answer is validated strictly with the client's types.

    openai_python.py URL
"""

import sys

import openai
from openai import OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

URL = sys.argv[1]
client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=120)
HELLO = [{"role": "user", "content": "Hello! Who are you?"}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


def strict(kind, answer):
    """Validate again in pydantic's strict mode."""
    kind.model_validate(answer.model_dump(), strict=True)
    return answer


def refused(status, param=None, text="", **request):
    """Assert that the request fails with this status, and that the error names the parameter and contains the text."""
    call = client.chat.completions.create if "messages" in request else client.completions.create
    try:
        call(**{"model": "hymba", **request})
    except openai.APIStatusError as e:
        assert e.status_code == status, e
        assert e.body["param"] == param, e.body
        assert text in e.body["message"], e.body
        return e
    raise AssertionError(f"{request} was not refused")


def models():
    (model,) = client.models.list().data
    assert model.id and model.created and model.owned_by == "hymba" and model.meta["n_ctx"] > 0, model
    assert client.models.retrieve(model.id).id == model.id
    assert client.models.retrieve("hymba").id == model.id, "an alias"
    try:
        client.models.retrieve("gpt-4o")
    except openai.NotFoundError as e:
        assert e.code == "model_not_found"
    else:
        raise AssertionError("an unknown model")
    refused(404, text="unknown model `gpt-4o`", model="gpt-4o", messages=HELLO)


def chat():
    request = {"model": "hymba", "messages": HELLO, "temperature": 0, "max_completion_tokens": 48}
    whole = strict(ChatCompletion, client.chat.completions.create(**request))
    (choice,) = whole.choices
    assert choice.finish_reason in ("stop", "length") and choice.message.content and choice.message.refusal is None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.prompt_tokens_details.cached_tokens is not None

    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    chunks = [strict(ChatCompletionChunk, chunk) for chunk in chunks]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == choice.message.content, (text, choice.message.content)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons[-1] == choice.finish_reason and not any(reasons[:-1]), reasons
    short = client.chat.completions.create(**{**request, "max_completion_tokens": 2})
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2
    plain = list(client.chat.completions.create(**request, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in plain), "no usage unless requested"

    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello! "}, {"type": "text", "text": "Who are you?"}]}]
    assert client.chat.completions.create(**{**request, "messages": parts}).choices[0].message == choice.message
    answered = [*HELLO, choice.message.model_dump(), {"role": "user", "content": "And what can you do?"}]
    continued = client.chat.completions.create(**{**request, "messages": answered})
    assert continued.usage.prompt_tokens > whole.usage.prompt_tokens


def several():
    request = {"model": "hymba", "messages": HELLO, "seed": 5, "temperature": 1.0, "max_tokens": 16}
    three = client.chat.completions.create(**request, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    contents = [choice.message.content for choice in three.choices]
    for i, content in enumerate(contents):
        alone = client.chat.completions.create(**{**request, "seed": 5 + i})
        assert alone.choices[0].message.content == content, "choice i has seed + i"
    assert len(set(contents)) > 1, contents
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**request, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == contents


def stops():
    base = {"model": "hymba", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 60}
    whole = client.completions.create(**base).choices[0].text
    middle = len(whole) // 2
    for stop in [whole[middle : middle + 9], ["\u2603", whole[middle + 1 : middle + 4], whole[middle : middle + 9]]]:
        # Of several the one counts that is complete first.
        found = [s for s in ([stop] if isinstance(stop, str) else stop) if s in whole]
        _, first = min((whole.find(s) + len(s), whole.find(s)) for s in found)
        once = client.completions.create(**base, stop=stop).choices[0]
        streamed = "".join(c.choices[0].text for c in client.completions.create(**base, stop=stop, stream=True) if c.choices)
        assert (once.text, once.finish_reason) == (whole[:first], "stop"), (once, whole[:first])
        assert streamed == once.text, "never shown in part"
    refused(400, "stop", "has 17 strings", prompt="a", stop=["a"] * 17)
    refused(400, "stop[1]", "must not be empty", prompt="a", stop=["a", ""])


def completions():
    base = {"model": "hymba", "temperature": 0}
    text = "Lily found a caf\u00e9 \u2014 and a \U0001f984!"
    strict(Completion, client.completions.create(**base, prompt=text, logprobs=3))
    # The first token has no log probability: it is null, which the client's types do not allow.
    scored = client.completions.create(**base, prompt=text, echo=True, max_tokens=0, logprobs=3)
    (choice,) = scored.choices
    logprobs = choice.logprobs
    assert choice.text == text and scored.usage.completion_tokens == 0
    count = scored.usage.prompt_tokens
    columns = [logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset]
    assert [len(column) for column in columns] == [count] * 4
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    best = 0
    for token, value, top in list(zip(*columns[:3]))[1:]:
        assert len(top) == 3
        if value > min(top.values()):
            assert top[token] == value, (token, top)
            best += 1
    assert best > 0, "some tokens are in the top log probabilities"
    for token, start, end in zip(logprobs.tokens, logprobs.text_offset, [*logprobs.text_offset[1:], len(text)]):
        part = text[start:end]
        assert part in (token, token.lstrip(" ")) or token.startswith("<"), (token, part)

    with_one = client.completions.create(**base, prompt=text, echo=True, max_tokens=1, logprobs=1).choices[0]
    assert len(with_one.logprobs.tokens) == count + 1
    assert with_one.logprobs.text_offset[-1] == len(text) and with_one.text[len(text) :] == with_one.logprobs.tokens[-1]

    prompts = ["The cat", "A dog sat on", "Once upon a time"]
    many = client.completions.create(**base, prompt=prompts, max_tokens=6, n=2)
    assert [choice.index for choice in many.choices] == list(range(6))
    for i, prompt in enumerate(prompts):
        alone = client.completions.create(**base, prompt=prompt, max_tokens=6)
        assert many.choices[2 * i].text == many.choices[2 * i + 1].text == alone.choices[0].text

    import httpx

    ids = [httpx.post(f"{URL}/tokenize", json={"content": p, "add_special": True}).json()["tokens"] for p in prompts]
    by_ids = client.completions.create(**base, prompt=ids, max_tokens=6)
    assert [c.text for c in by_ids.choices] == [many.choices[2 * i].text for i in range(3)]
    assert client.completions.create(**base, prompt=ids[0], max_tokens=6).choices[0].text == by_ids.choices[0].text
    assert httpx.post(f"{URL}/detokenize", json={"tokens": ids[2]}).json()["content"] == prompts[2]
    template = httpx.post(f"{URL}/apply-template", json={"messages": HELLO}).json()["prompt"]
    assert HELLO[0]["content"] in template

    biased = client.completions.create(**base, prompt="Once upon", max_tokens=4, logit_bias={str(ids[0][1]): 100})
    assert set(biased.choices[0].text.split()) == {prompts[0].split()[0]}, biased.choices[0].text
    seeded = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 1, "seed": 9}
    plain = client.completions.create(model="hymba", **seeded).choices[0].text
    assert client.completions.create(model="hymba", **seeded).choices[0].text == plain
    penalized = client.completions.create(**base, prompt="a a a a a a a a a", max_tokens=24, frequency_penalty=2)
    assert penalized.choices[0].text != client.completions.create(**base, prompt="a a a a a a a a a", max_tokens=24).choices[0].text


def logprobs():
    answer = client.chat.completions.create(
        model="hymba", messages=HELLO, logprobs=True, top_logprobs=4, temperature=0, max_tokens=12
    )
    content = strict(ChatCompletion, answer).choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 4 and token.top_logprobs[0].token == token.token
        assert bytes(token.bytes).decode() == token.token or token.token.startswith("<")
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.choices[0].message.content
    refused(400, "top_logprobs", "needs `logprobs: true`", messages=HELLO, top_logprobs=2)


def response_formats():
    import json

    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}
    for seed in range(3):
        answer = client.chat.completions.create(model="hymba", messages=HELLO, response_format=form, seed=seed, temperature=1.2)
        value = json.loads(answer.choices[0].message.content)
        assert set(value) == {"name", "age"} and 0 <= value["age"] <= 99 and len(value["name"]) <= 12, value
        assert answer.choices[0].finish_reason == "stop"
    broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}
    refused(400, "response_format", "", messages=HELLO, response_format=broken)
    refused(400, "response_format.type", "must be text", messages=HELLO, response_format={"type": "yaml"})


def tools():
    import json

    ask = [{"role": "user", "content": "What is 2 plus 3?"}]
    base = {"model": "hymba", "tools": [ADD], "temperature": 0, "max_tokens": 80}
    answer = strict(ChatCompletion, client.chat.completions.create(**base, messages=ask, tool_choice="required"))
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.type, call.function.name) == ("tool_calls", "function", "add")
    assert set(json.loads(call.function.arguments)) == {"a", "b"}

    named = {"type": "function", "function": {"name": "add"}}
    chunks = list(client.chat.completions.create(**base, messages=ask, tool_choice=named, stream=True))
    deltas = [d for c in chunks for choice in c.choices for d in choice.delta.tool_calls or []]
    assert [bool(d.id) for d in deltas] == [True] + [False] * (len(deltas) - 1), "the id is only in the first chunk"
    assert [d.function.name for d in deltas] == ["add"] + [None] * (len(deltas) - 1), "the name is only in the first chunk"
    assert "".join(d.function.arguments for d in deltas) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"

    result = {"role": "tool", "tool_call_id": call.id, "content": "5"}
    after = client.chat.completions.create(**base, messages=[*ask, choice.message.model_dump(exclude_none=True), result])
    assert after.choices[0].message.content is not None or after.choices[0].message.tool_calls
    refused(400, "messages[1].tool_call_id", "no previous message", messages=[*ask, result])
    refused(400, "tool_choice", "", messages=ask, tool_choice="required")
    refused(400, "tools", "", messages=ask, tools=[{"type": "function"}])


def refusals():
    for field, value in {
        "audio": {"voice": "a", "format": "wav"},
        "prediction": {"type": "content", "content": "a"},
        "modalities": ["audio"],
        "reasoning_effort": "high",
        "store": True,
        "web_search_options": {},
    }.items():
        refused(400, field, messages=HELLO, extra_body={field: value})
    refused(400, "no_such_field", "unknown", messages=HELLO, extra_body={"no_such_field": 1})
    refused(400, "best_of", prompt="a", best_of=2)
    refused(400, "suffix", prompt="a", suffix="b")
    refused(400, "n", "from 1 to 16", messages=HELLO, n=0)
    refused(400, "temperature", messages=HELLO, temperature=-1)
    refused(400, "logit_bias.99999999", "not a token id", messages=HELLO, logit_bias={"99999999": 1})
    refused(400, "messages", messages=[])
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    refused(400, "messages[0].content[0].type", "text only", messages=[{"role": "user", "content": [image]}])
    long = refused(400, None, "tokens", messages=[{"role": "user", "content": "word " * 20000}])
    assert long.code == "context_length_exceeded", long.body
    long = refused(400, "prompt", "tokens", prompt="word " * 20000)
    assert long.code == "context_length_exceeded", long.body
    refused(400, "prompt[0]", "a token id from 0", prompt=[123456789])


for case in [models, chat, several, stops, completions, logprobs, response_formats, tools, refusals]:
    case()
    print(f"openai-python: {case.__name__}: ok", flush=True)
