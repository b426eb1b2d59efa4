// What the OpenAPI document says of answers.

import type { JsonSchema } from './request.js'

const text = { type: 'string' }
const integer = { type: 'integer' }
const number = { type: 'number' }

function object(properties: Record<string, JsonSchema>, optional: string[] = []): JsonSchema {
  const required = Object.keys(properties).filter((name) => !optional.includes(name))
  return { type: 'object', properties, required }
}

function list(items: JsonSchema): JsonSchema {
  return { type: 'array', items }
}

/** An answer in JSON, or in one of several media types. */
function answer(description: string, content: Record<string, JsonSchema>) {
  return {
    description,
    content: Object.fromEntries(
      Object.entries(content).map(([type, schema]) => [type, { schema }]),
    ),
  }
}

const json = (description: string, schema: JsonSchema) => {
  return answer(description, { 'application/json': schema })
}

const classEntry = object({ id: integer, name: text })

const errorBody = object({
  error: object(
    {
      message: { ...text, description: 'What was expected, what was got, what to do.' },
      type: {
        ...text,
        enum: ['invalid_request_error', 'authentication_error', 'rate_limit_error', 'server_error'],
      },
      code: { ...text, description: 'Never changes, as the message may: ERR_DIT_OPTION.' },
      suggestions: { ...list(classEntry), description: 'Classes whose names are near.' },
    },
    ['suggestions'],
  ),
})

const retryAfter = {
  headers: { 'Retry-After': { schema: integer, description: 'Seconds to wait.' } },
}

const busy = { 429: { ...json('Too much is asked for at once.', errorBody), ...retryAfter } }

/** Answers that a route may give beside its own. @internal */
export const errorAnswers = {
  wrong: { 400: json('The request is wrong; the message says what was expected.', errorBody) },
  unauthorized: { 401: json('The server asks for a token.', errorBody) },
  missing: { 404: json('There is no such thing, or no longer.', errorBody) },
  busy,
  making: {
    400: json('A field is wrong; the message says what was expected.', errorBody),
    404: json('There is no such model.', errorBody),
    413: json('The body is too large.', errorBody),
    415: json('The body is no JSON.', errorBody),
    422: json('No class is called that; suggestions are near.', errorBody),
    ...busy,
    500: json('It went wrong here.', errorBody),
    503: {
      ...json('It is being started or stopped, or cannot meet the deadline.', errorBody),
      ...retryAfter,
    },
    504: json('The deadline could not be met.', errorBody),
  },
}

const seed = { anyOf: [integer, text], description: 'A string beyond 2^53 - 1.' }

const image = object(
  {
    index: integer,
    label: { ...integer, description: 'The class number.' },
    className: text,
    seed,
    width: integer,
    height: integer,
    mime: text,
    data: { ...text, contentEncoding: 'base64' },
  },
  ['className'],
)

const images = object({
  id: text,
  images: list(image),
  timings: object({
    queueSeconds: number,
    sampleSeconds: number,
    decodeSeconds: number,
    totalSeconds: number,
    cached: { ...integer, description: 'Images that were remembered.' },
  }),
})

const picture = { ...text, contentMediaType: 'image/png', format: 'binary' }

/** @internal */
export const imagesAnswers = {
  200: answer('The images; the bytes of one image where the request prefers them.', {
    'application/json': images,
    'image/png': picture,
    'image/webp': { ...picture, contentMediaType: 'image/webp' },
  }),
  202: json('It is under way.', object({ id: text, events: text })),
}

/** @internal */
export const eventsAnswers = {
  200: answer(
    'Events queued { id, images }, progress { step, steps }, preview { index, step, steps, image: a data URL }, ' +
      'then done (as the answer of POST images) or error { code, message }.',
    { 'text/event-stream': text },
  ),
}

/** @internal */
export const cancelAnswers = {
  204: { description: 'It is cancelled, or had ended.', type: 'null' },
}

/** @internal */
export const openaiAnswers = {
  200: json(
    "The images, as OpenAI's API gives them.",
    object({
      created: integer,
      size: text,
      output_format: text,
      data: list(
        object(
          {
            b64_json: text,
            url: text,
            revised_prompt: { ...text, description: 'The class that was made.' },
            seed,
          },
          ['b64_json', 'url'],
        ),
      ),
    }),
  ),
}

const model = object({
  id: text,
  object: text,
  created: integer,
  owned_by: text,
  dit: object({
    image: object({ width: integer, height: integer, channels: integer }),
    latentSize: list(integer),
    latentChannels: integer,
    numClasses: integer,
    nullClass: { type: 'boolean', description: 'Whether numClasses itself means no class.' },
    classNames: { type: 'boolean' },
    vae: { type: 'boolean' },
    device: text,
    precision: text,
    samplers: list(text),
    defaults: object({ sampler: text, steps: integer, guidance: number }),
    limits: object({ images: integer, steps: integer, priority: integer, bodyBytes: integer }),
  }),
})

/** @internal */
export const modelsAnswers = {
  list: { 200: json('All models.', object({ object: text, data: list(model) })) },
  one: { 200: json('The model.', model) },
  classes: { 200: json('Its classes.', object({ object: text, data: list(classEntry) })) },
}

const status = object({ status: text, reason: text }, ['reason'])

/** @internal */
export const healthAnswers = {
  alive: { 200: json('The process is alive.', status) },
  ready: {
    200: json('Requests are answered.', status),
    503: json('They are not: the reason.', status),
  },
  metrics: { 200: answer("Prometheus' text format.", { 'text/plain': text }) },
  openapi: { 200: json('This document.', { type: 'object', additionalProperties: true }) },
}
