// Tests `hymba serve` with openai-node.
//
//     openai_node.mjs URL

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

// The package is in the folder named by NODE_PATH.
const require = createRequire(join(process.env.NODE_PATH ?? ".", "client.js"));
const { OpenAI, NotFoundError, BadRequestError } = require("openai");

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello! Who are you?" }];
const request = { model: "hymba", messages, temperature: 0, max_tokens: 32 };

async function models() {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.equal(ids.length, 1);
  await assert.rejects(client.models.retrieve("gpt-4o"), NotFoundError);
}

async function chat() {
  const whole = await client.chat.completions.create(request);
  const [{ message, finish_reason }] = whole.choices;
  assert.ok(message.content && message.refusal === null && ["stop", "length"].includes(finish_reason));
  const stream = await client.chat.completions.create({ ...request, stream: true, stream_options: { include_usage: true } });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, message.content);
  assert.equal(usage.total_tokens, whole.usage.total_tokens);
  const final = await client.chat.completions.stream(request).finalChatCompletion();
  assert.equal(final.choices[0].message.content, message.content);
}

async function abort() {
  const stream = await client.chat.completions.create({ ...request, max_tokens: 900, logit_bias: { 2: -100 }, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    break; // closes the connection
  }
  assert.ok((await client.chat.completions.create(request)).choices.length);
}

async function completions() {
  const answer = await client.completions.create({
    model: "hymba", prompt: ["The cat", "A dog"], echo: true, max_tokens: 0, logprobs: 2,
  });
  assert.deepEqual(answer.choices.map((choice) => choice.text), ["The cat", "A dog"]);
  for (const { logprobs } of answer.choices) {
    assert.equal(logprobs.token_logprobs[0], null);
    assert.equal(logprobs.tokens.length, logprobs.text_offset.length);
  }
}

async function tools() {
  const add = {
    type: "function",
    function: {
      name: "add",
      description: "Add two numbers.",
      parameters: {
        type: "object",
        properties: { a: { type: "integer" }, b: { type: "integer" } },
        required: ["a", "b"],
        additionalProperties: false,
      },
    },
  };
  const options = { model: "hymba", tools: [add], tool_choice: "required", temperature: 0, max_tokens: 80 };
  const question = [{ role: "user", content: "What is 2 plus 3?" }];
  const whole = await client.chat.completions.create({ ...options, messages: question });
  const [call] = whole.choices[0].message.tool_calls;
  assert.equal(call.function.name, "add");
  const final = await client.chat.completions.stream({ ...options, messages: question }).finalChatCompletion();
  assert.deepEqual(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
}

async function refusals() {
  await assert.rejects(client.chat.completions.create({ ...request, no_such_field: 1 }), (error) => {
    assert.ok(error instanceof BadRequestError);
    assert.equal(error.param, "no_such_field");
    assert.equal(error.code, "unknown_parameter");
    return true;
  });
}

for (const test of [models, chat, abort, completions, tools, refusals]) {
  await test();
  console.log(`openai-node: ${test.name}: ok`);
}
