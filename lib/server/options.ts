// What the plugin and the server can be told, and the check of it.

import type { FastifyRequest } from 'fastify'
import * as v from 'valibot'
import { DiT } from '../dit.js'
import { DiTError } from '../errors.js'
import { check, flag, integer, is } from '../options.js'

/** What a request may ask for. Every one of them is checked before anything is made. */
export interface Limits {
  /** Bytes of a request's body. Default 65536. */
  bodyBytes?: number
  /** Images of one request. Default 16; never more than `inFlight`. */
  images?: number
  /** Solver steps of each image. Default 250. */
  steps?: number
  /** Images of all requests that are under way, waiting ones included. Default 256; more are refused with 429. */
  inFlight?: number
  /** The highest `priority` that a request may ask for. Default 100; 0 where callers are not trusted. */
  priority?: number
  /** How long the images of a `wait: false` request are kept when they are made, in seconds. Default 120. */
  keepSeconds?: number
  /** Bytes of all images that are kept for those requests. Default 64 MiB. */
  keepBytes?: number
}

/** How often one caller may ask for images. */
export interface RateLimit {
  /** Requests for images in each `seconds`. */
  requests: number
  /** Default 60. */
  seconds?: number
}

/**
 * Options of the plugin `ditServer`.
 *
 * @example
 * const options: DitServerOptions = { model: { clothes: dit }, token: process.env.DIT_TOKEN, limits: { images: 4 } }
 */
export interface DitServerOptions {
  /**
   * A model, or models by their names in requests. The names are what `GET /v1/models` lists: letters,
   * digits, `.`, `_` and `-`. A model alone is called `'dit'`. They stay yours: closing the server does
   * not close them.
   */
  model: DiT | Readonly<Record<string, DiT>>
  /** What a request may ask for. */
  limits?: Limits
  /**
   * What `Authorization: Bearer …` must say under `/v1`, `/metrics` and `/openapi.json`: one, or any of
   * several: ASCII without spaces. Compared in constant time, never logged. Default: nothing is asked.
   */
  token?: string | readonly string[]
  /** By token, else by address; needs the package `@fastify/rate-limit`. Default: none. */
  rateLimit?: RateLimit
  /** Bytes of images that are kept for requests that ask for the same again. Default 64 MiB; 0: none. */
  cacheBytes?: number
  /** Who asks, for fair shares of a model. Default: the request's `user`, else its token, else its address. */
  caller?: (request: FastifyRequest) => string
  /** Whether there is a page at `/` to try the models. Default true. */
  playground?: boolean
  /** Seconds that requests under way have to end when the app closes. Default 10; then they are cancelled. */
  graceSeconds?: number
}

/** All of them, with defaults. @internal */
export interface Settings {
  readonly limits: Required<Limits>
  readonly tokens: readonly string[]
  readonly rateLimit: Required<RateLimit> | undefined
  readonly cacheBytes: number
  readonly caller: ((request: FastifyRequest) => string) | undefined
  readonly playground: boolean
  readonly graceSeconds: number
}

const maxSeconds = 86_400

const limitsSchema = v.strictObject(
  {
    bodyBytes: v.optional(integer(256, 1 << 30), 1 << 16),
    images: v.optional(integer(1, 4096), 16),
    steps: v.optional(integer(1, 1_000_000), 250),
    inFlight: v.optional(integer(1, 1 << 20), 256),
    priority: v.optional(integer(0, 100), 100),
    keepSeconds: v.optional(integer(1, maxSeconds), 120),
    keepBytes: v.optional(integer(1), 64 << 20),
  },
  'an object',
)

/** What a header can carry: of other letters each client makes other bytes. */
const isToken = (value: unknown) => typeof value === 'string' && /^[!-~]+$/.test(value)
const isTokens = (value: unknown) =>
  isToken(value) || (Array.isArray(value) && value.length > 0 && value.every(isToken))

/** Those that `serve` has, too. @internal */
export const settingsEntries = {
  limits: v.optional(limitsSchema, {}),
  // Its value is shown in no message.
  token: v.optional(v.custom<string | readonly string[]>(() => true)),
  rateLimit: v.optional(
    v.strictObject(
      { requests: integer(1, 1 << 30), seconds: v.optional(integer(1, maxSeconds), 60) },
      'an object { requests, seconds }',
    ),
  ),
  cacheBytes: v.optional(integer(0), 64 << 20),
  caller: v.optional(
    is<(request: FastifyRequest) => string>('a function', (value) => typeof value === 'function'),
  ),
  playground: v.optional(flag, true),
  graceSeconds: v.optional(integer(0, maxSeconds), 10),
}

const modelName = /^[\w.-]{1,100}$/

/** Throws ERR_DIT_OPTION for what is no name of a model. @internal */
export function checkModelName(name: string): string {
  if (modelName.test(name)) return name
  throw new DiTError(
    'ERR_DIT_OPTION',
    `Expected letters, digits, '.', '_' and '-' for the name of a model but got '${name}'`,
  )
}

const pluginSchema = v.strictObject({
  ...settingsEntries,
  model: v.custom<DitServerOptions['model']>(() => true),
  // What Fastify itself passes on from app.register.
  prefix: v.optional(v.string()),
  logLevel: v.optional(v.string()),
  logSerializers: v.optional(v.custom<object>(() => true)),
})

/** @internal */
export function checkPluginOptions(given: unknown): {
  settings: Settings
  models: Record<string, DiT>
} {
  const { model, ...rest } = check(pluginSchema, given)
  const models: Record<string, DiT> = model instanceof DiT ? { dit: model } : { ...model }
  const isModels =
    Object.keys(models).length > 0 && Object.values(models).every((one) => one instanceof DiT)
  if (!isModels) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      'Expected a DiT, or an object from names to DiTs, for model: `await DiT.load(source)` makes one',
    )
  }
  for (const name of Object.keys(models)) checkModelName(name)
  return { settings: toSettings(rest), models }
}

/** @internal */
export function toSettings(
  given: v.InferOutput<v.StrictObjectSchema<typeof settingsEntries, undefined>>,
): Settings {
  const { token } = given
  const limits = given.limits as Required<Limits>
  if (token !== undefined && !isTokens(token)) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      'Expected ASCII letters, digits and signs without spaces, or several such texts, for token',
    )
  }
  return {
    // One that could never be let in is wrong, not early.
    limits: { ...limits, images: Math.min(limits.images, limits.inFlight) },
    tokens: token === undefined ? [] : [token].flat(),
    rateLimit: given.rateLimit,
    cacheBytes: given.cacheBytes,
    caller: given.caller,
    playground: given.playground,
    graceSeconds: given.graceSeconds,
  }
}
