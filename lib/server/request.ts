// The fields of a request for images: each one's place in the OpenAPI document and its check, side by side.

import * as v from 'valibot'
import { DiTError } from '../errors.js'
import { check, flag, integer, is, isBetween, isInteger, isPair, oneOf } from '../options.js'
import type { Limits } from './options.js'

/** A JSON schema. @internal */
export type JsonSchema = Readonly<Record<string, unknown>>

/** A field: what the document says of it, and what is checked. */
interface Field {
  json: JsonSchema
  test: v.GenericSchema
}

const maxSeed = 2n ** 64n - 1n
const isSeed = (value: unknown) =>
  isInteger(value, 0, Number.MAX_SAFE_INTEGER) ||
  (typeof value === 'string' && /^\d{1,20}$/.test(value) && BigInt(value) <= maxSeed)
const isLabel = (value: unknown) =>
  typeof value === 'number' || (typeof value === 'string' && value.length <= 1000)
const finite = (value: unknown) =>
  typeof value === 'number' && Number.isFinite(Math.fround(value)) && Math.abs(value) <= 1000

const seedJson = {
  anyOf: [
    { type: 'integer', minimum: 0, maximum: Number.MAX_SAFE_INTEGER },
    { type: 'string', pattern: '^[0-9]{1,20}$' },
  ],
}
const labelJson = {
  anyOf: [
    { type: 'integer', minimum: 0 },
    { type: 'string', minLength: 1, maxLength: 1000 },
  ],
}

/** What both ways of asking for images take. */
function samplingFields({ steps }: Required<Limits>) {
  return {
    model: {
      json: { type: 'string', description: 'One of GET v1/models. Default: the first.' },
      test: is<string>('a name', (value) => typeof value === 'string' && value.length <= 100),
    },
    seed: {
      json: {
        ...seedJson,
        description:
          'Image i has seed + i, and is the same whenever it is asked for. Beyond 2^53 - 1 as a string. Default: random.',
      },
      test: is<number | string>('an integer from 0 to 2^64 - 1, as a string from 2^53 on', isSeed),
    },
    steps: {
      json: {
        type: 'integer',
        minimum: 1,
        maximum: steps,
        description: "Evaluations of the model per image. Default 25; 250 for 'ddpm'.",
      },
      test: integer(1, steps),
    },
    sampler: {
      json: { type: 'string', enum: ['dpm++', 'ddim', 'ddpm'], description: "Default 'dpm++'." },
      test: oneOf('dpm++', 'ddim', 'ddpm'),
    },
    guidance: {
      json: {
        type: 'number',
        minimum: -1000,
        maximum: 1000,
        description: 'Scale of classifier-free guidance. Default 4; 1: none, twice as fast.',
      },
      test: is<number>('a number from -1000 to 1000', finite),
    },
  }
}

function imageFields(limits: Required<Limits>) {
  return {
    ...samplingFields(limits),
    labels: {
      json: {
        description: 'Class numbers or names: one image for each.',
        anyOf: [
          ...labelJson.anyOf,
          { type: 'array', minItems: 1, maxItems: limits.images, items: labelJson },
        ],
      },
      test: is<number | string | (number | string)[]>(
        `1 to ${limits.images} class numbers or names`,
        (value) =>
          isLabel(value) ||
          (Array.isArray(value) &&
            value.length >= 1 &&
            value.length <= limits.images &&
            value.every(isLabel)),
      ),
    },
    seeds: {
      json: {
        type: 'array',
        maxItems: limits.images,
        items: seedJson,
        description: 'One seed per image, instead of seed.',
      },
      test: is<(number | string)[]>(
        'an array of seeds, one per image',
        (value) => Array.isArray(value) && value.length <= limits.images && value.every(isSeed),
      ),
    },
    eta: {
      json: {
        type: 'number',
        minimum: 0,
        maximum: 1,
        description: "Share of fresh noise in each step of 'ddim'. Default 0.",
      },
      test: is<number>('a number from 0 to 1', (value) => isBetween(value, 0, 1)),
    },
    guidanceInterval: {
      json: {
        type: 'array',
        minItems: 2,
        maxItems: 2,
        items: { type: 'number', minimum: 0, maximum: 1 },
        description: 'The part of the process that is guided, in t/T. Default [0, 1].',
      },
      test: is<[number, number]>(
        '[from, to] with 0 <= from <= to <= 1',
        (value) =>
          isPair(value, (item) => isBetween(item, 0, 1)) &&
          (value as [number, number])[0] <= (value as [number, number])[1],
      ),
    },
    priority: {
      json: {
        type: 'integer',
        minimum: -100,
        maximum: limits.priority,
        description: 'Higher goes first. Default 0.',
      },
      test: integer(-100, limits.priority),
    },
    deadline: {
      json: {
        type: 'integer',
        minimum: 1,
        maximum: 86_400_000,
        description:
          'Milliseconds by which the images must be there. Refused at once (503) where measured step times say that they cannot be, given up (504) when it turns out later.',
      },
      test: integer(1, 86_400_000),
    },
    preview: {
      json: {
        type: 'integer',
        minimum: 1,
        maximum: limits.steps,
        description: 'A preview event every so many steps. Default: none.',
      },
      test: integer(1, limits.steps),
    },
    format: {
      json: {
        type: 'string',
        enum: ['png', 'webp', 'json'],
        description:
          "'png', 'webp': how images are encoded, and for one image that its bytes are the answer. 'json': PNGs in JSON. Default: what Accept prefers.",
      },
      test: oneOf('png', 'webp', 'json'),
    },
    wait: {
      json: {
        type: 'boolean',
        description:
          'false: an answer at once (202) that says where the events are. Also: the header Prefer: respond-async. Default true.',
      },
      test: flag,
    },
  }
}

function openaiFields(limits: Required<Limits>) {
  const ignored = (what: string) => ({
    json: { type: ['string', 'null'], enum: ['auto', 'standard', null], description: what },
    test: is<'auto' | 'standard' | null>(
      "'auto', 'standard' or null",
      (value) => value === null || value === 'auto' || value === 'standard',
    ),
  })
  return {
    ...samplingFields(limits),
    prompt: {
      json: {
        type: 'string',
        minLength: 1,
        maxLength: 4000,
        description: 'What a class is called, or a text with such a name in it.',
      },
      test: is<string>(
        'a text of 1 to 4000 characters',
        (value) => typeof value === 'string' && value.trim() !== '' && value.length <= 4000,
      ),
    },
    n: {
      json: {
        type: ['integer', 'null'],
        minimum: 1,
        maximum: limits.images,
        description: 'Default 1.',
      },
      test: is<number | null>(
        `an integer from 1 to ${limits.images}`,
        (value) => value === null || isInteger(value, 1, limits.images),
      ),
    },
    size: {
      json: {
        type: ['string', 'null'],
        pattern: '^(auto|[0-9]+x[0-9]+)$',
        description: "'auto', or the size that the model has.",
      },
      test: is<string | null>(
        "'auto' or a size such as '256x256'",
        (value) => value === null || /^(auto|\d{1,5}x\d{1,5})$/.test(String(value)),
      ),
    },
    response_format: {
      json: {
        type: ['string', 'null'],
        enum: ['b64_json', 'url', null],
        description: "Default 'b64_json'. 'url': a data URL; nothing is stored here.",
      },
      test: is<'b64_json' | 'url' | null>(
        "'b64_json' or 'url'",
        (value) => value === null || value === 'b64_json' || value === 'url',
      ),
    },
    output_format: {
      json: {
        type: ['string', 'null'],
        enum: ['png', 'webp', null],
        description: "Default 'png'.",
      },
      test: is<'png' | 'webp' | null>(
        "'png' or 'webp'",
        (value) => value === null || value === 'png' || value === 'webp',
      ),
    },
    quality: ignored('There is one quality.'),
    style: ignored('There is one style.'),
    background: ignored('There is one background.'),
    moderation: ignored('Classes are fixed, so nothing is moderated.'),
    user: {
      json: {
        type: 'string',
        maxLength: 200,
        description: 'Who asks, for fair shares of the model.',
      },
      test: is<string>(
        'a text of at most 200 characters',
        (value) => typeof value === 'string' && value.length <= 200,
      ),
    },
  }
}

type Fields = Record<string, Field>

/** What a body of such fields is when it is checked. */
type Body<F extends Fields> = { [K in keyof F]?: v.InferOutput<F[K]['test']> | undefined }

/** @internal */
export type ImageBody = Body<ReturnType<typeof imageFields>>
/** @internal */
export type OpenaiBody = Body<ReturnType<typeof openaiFields>>

/** The body of a route: its JSON schema and its check. @internal */
export interface BodyRule<T> {
  readonly json: JsonSchema
  /** Throws ERR_DIT_OPTION, which names the field. */
  check(body: unknown): T
}

/** @internal */
export function imageRule(limits: Required<Limits>): BodyRule<ImageBody> {
  return rule(imageFields(limits), 'labels')
}

/** @internal */
export function openaiRule(limits: Required<Limits>): BodyRule<OpenaiBody> {
  return rule(openaiFields(limits), 'prompt')
}

function rule<F extends Fields>(fields: F, needed: keyof F & string): BodyRule<Body<F>> {
  const entries = Object.entries(fields)
  const json = {
    type: 'object',
    additionalProperties: false,
    required: [needed],
    properties: Object.fromEntries(entries.map(([name, field]) => [name, field.json])),
  }
  const schema = v.strictObject(
    Object.fromEntries(entries.map(([name, field]) => [name, v.optional(field.test)])),
  )
  return {
    json,
    check(body) {
      const checked = check(schema, body, 'the body') as Body<F>
      if (checked[needed] !== undefined) return checked
      throw new DiTError('ERR_DIT_OPTION', `Expected ${needed} in the body`)
    },
  }
}
