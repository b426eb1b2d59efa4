// Every option of the public API: what it means, and the check of its value. A call checks its
// options here, once; what stands behind can rely on them.

import * as v from 'valibot'
import { isDevice } from './devices.js'
import { DiTError, invalidOption, show } from './errors.js'
import type { PreviewEvent, ProgressEvent } from './events.js'
import type {
  DiTConfigInput,
  LoadProgress,
  ScheduleConfig,
  WeightsChoice,
} from './formats/types.js'
import { nearness } from './labels.js'
import type { Tensor } from './tensor.js'

/**
 * The arithmetic of a model. `'bf16'`: bf16 operands, fp32 sums, statistics and softmax. `'tf32'` is
 * for NVIDIA GPUs.
 */
export type Precision = 'fp32' | 'tf32' | 'bf16'

/** The seed of an image: an integer from 0 to 2^53 - 1, or a bigint from 0n to 2^64 - 1. */
export type Seed = number | bigint

/** Where a model is to run: `'auto'`, `'cpu'`, `'cuda'` (the first GPU), `'cuda:1'`. */
export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`

/** Progress of a load: files that are fetched, then weights that are read and prepared; both in bytes. */
export type ModelProgress = LoadProgress | { phase: 'prepare'; loaded: number; total: number }

/** Where and how a model runs. */
export interface DeviceOptions {
  /** Default `'auto'`: the first GPU that works, else the processor; `DiT.devices()` tells why. */
  device?: Device
  /** Default: bf16 where the device has it, as every GPU does, else fp32. `'tf32'`: GPUs only. */
  precision?: Precision
  /**
   * Processor threads, of all models together. Default 0: as many as there are cores, or as a container's
   * limit gives time for.
   */
  threads?: number
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal
  /** Called now and then while files are fetched and weights are prepared. */
  onProgress?: (progress: ModelProgress) => void
}

/**
 * How much a model does at once.
 *
 * @example
 * const options: BatchOptions = { maxBatch: 8, maxQueue: 64 }
 * const dit = await DiT.load('demo', options)
 */
export interface BatchOptions {
  /**
   * Images in the making at once; others wait for their turn. Default 4 on a CPU, 32 on a GPU, which
   * does many in the time of a few. Each takes device memory (`dit.memory().activations`). An image is
   * the same, bit for bit, whatever this is.
   *
   * @example
   * const dit = await DiT.load('facebook/DiT-XL-2-256', { maxBatch: 64, maxQueue: 256 })
   */
  maxBatch?: number
  /**
   * A call whose images would have to wait behind this many waiting images, or more, is refused at
   * once with ERR_DIT_BUSY, whose `retryAfter` says when to come back. Only images of the same or a
   * higher `priority` count. A call is taken as a whole or not at all, so one of many images may make
   * the queue longer than this. 0: nobody waits. Default: no limit.
   *
   * @example
   * const dit = await DiT.load('demo', { maxQueue: 100 })
   * try {
   *   await dit.sample([3, 7])
   * } catch (error) {
   *   if (!(error instanceof DiTError) || error.code !== 'ERR_DIT_BUSY') throw error
   *   console.log(`come back in ${error.retryAfter} s`) // of a server: 429 with Retry-After
   * }
   */
  maxQueue?: number
}

/**
 * Options of `DiT.load`.
 *
 * @example
 * const options: LoadOptions = { device: 'cuda', precision: 'bf16', latentSize: [32, 64] }
 * const dit = await DiT.load('facebook/DiT-XL-2-256', options)
 */
export interface LoadOptions extends DeviceOptions, BatchOptions {
  /** Which weights of a training checkpoint that has both. Default `'ema'`. */
  weights?: WeightsChoice
  /** Sizes, or a preset's name, where the checkpoint does not say them. */
  config?: DiTConfigInput | string
  /** A VAE to use instead of the source's own: a folder, a file, or a Hugging Face id. */
  vae?: string
  /** Branch, tag or commit of a Hugging Face repository. Default `'main'`. */
  revision?: string
  /**
   * Another size of the latent than the weights were trained at, in latent pixels: one number or
   * `[height, width]`, multiples of the patch size. The position embedding is computed anew.
   */
  latentSize?: number | readonly [height: number, width: number]
  /**
   * Another patch size than the weights were trained with, to be trained on. The patch embedding is
   * resized so that resized patches give the same tokens (FlexiViT, Beyer et al. 2023), the last layer
   * so that it makes resized patches. With `latentSize` times the same factor the model is at once that
   * of images resized patch by patch.
   */
  patchSize?: number
  /**
   * Another number of classes than the weights have, to be trained on: the label table is made anew.
   * The null class stays; the others begin as it is, plus the usual noise of deviation 0.02. There are
   * no class names then. The weights' own number changes nothing.
   */
  numClasses?: number
  /** Names of the classes, instead of the source's own. */
  id2label?: Record<number, string>
}

/**
 * Options of `DiT.create`.
 *
 * @example
 * const dit = await DiT.create('DiT-S/8', { seed: 1, schedule: { kind: 'cosine' } })
 */
export interface CreateOptions extends DeviceOptions, BatchOptions {
  /** The seed of the initial weights. Default: random. `dit.source.description` tells it. */
  seed?: Seed
  /** A VAE for the model: a folder, a file, or a Hugging Face id. */
  vae?: string
  /** Names of the classes. */
  id2label?: Record<number, string>
  /** The diffusion process. Default: linear, 1000 steps, beta from 1e-4 to 0.02. */
  schedule?: Partial<ScheduleConfig>
}

/** What `dit.sample` gives: images, or the latents they would be decoded from. */
export type Output = 'image' | 'latent'

/**
 * How an image is made: what it follows from, together with its label, its seed and the model.
 *
 * @example
 * const process: ProcessOptions = { sampler: 'ddim', steps: 50, guidance: 1.5 }
 */
export interface ProcessOptions {
  /**
   * `'dpm++'`, the default: DPM-Solver++(2M) (Lu et al. 2022). `'ddim'`: Song et al. 2021. `'ddpm'`:
   * ancestral sampling (Ho et al. 2020), with the learned variance where the model has one.
   */
  sampler?: 'dpm++' | 'ddim' | 'ddpm'
  /** Evaluations of the model per image. Default 25; 250 for `'ddpm'`. */
  steps?: number
  /**
   * Which timesteps are visited, instead of `steps`: a number of steps; `'ddimN'`, the stride that
   * gives exactly N; or `'a,b,c'`, equal sections of the process with a, b and c steps each.
   */
  spacing?: number | string
  /** Share of fresh noise in each step of `'ddim'`, 0 (the default) to 1. */
  eta?: number
  /** Clamps the predicted image to [-1, 1] in each step. Default false. */
  clip?: boolean
  /**
   * Scale of classifier-free guidance (Ho & Salimans 2022). Default 4; 1, one evaluation per step
   * instead of two, for models without a null class.
   */
  guidance?: number
  /** How many of the first channels are guided. Default: 3 of 4 (as the official code), else `'all'`. */
  guidanceChannels?: number | 'all'
  /** The part of the process that is guided, in t/T. Default `[0, 1]`. */
  guidanceInterval?: readonly [from: number, to: number]
}

/** The names of `ProcessOptions`. @internal */
export const processOptions = [
  'sampler',
  'steps',
  'spacing',
  'eta',
  'clip',
  'guidance',
  'guidanceChannels',
  'guidanceInterval',
] as const satisfies readonly (keyof ProcessOptions)[]

/**
 * Options of `dit.sample` and `dit.stream`.
 *
 * @example
 * const images = await dit.sample([207, 360], { sampler: 'ddpm', guidance: 1.5, seed: 7 })
 */
export interface SampleOptions<Wanted extends Output = 'image'> extends ProcessOptions {
  /** Image i of the call has seed `seed + i`. Default: random; `image.seed` tells it. */
  seed?: Seed
  /** One seed per image, instead of `seed`. */
  seeds?: readonly Seed[]
  /** The noise to start from instead of the seed's: [n, channels, height, width]. */
  noise?: Tensor
  /** The noise of every step instead of the seed's: [n, steps, channels, height, width]. */
  stepNoise?: Tensor
  /** `'latent'`: the latents, not decoded. Default `'image'`. */
  output?: Wanted
  /** Stops the work within one step; the call rejects with `signal.reason`. */
  signal?: AbortSignal
  /**
   * Called after every step, and with every preview. What it throws ends the call, which rejects with
   * it. It holds up this process's event loop, never the model; a promise that it returns is nobody's.
   */
  onProgress?: (event: ProgressEvent | PreviewEvent) => void
  /**
   * Who goes first: an integer, higher before lower; default 0. Lanes change hands between two steps:
   * an image of a lower priority is set aside for one of a higher, and goes on later with the same
   * bits. As long as higher priorities want all lanes, lower ones wait.
   *
   * @example
   * await dit.sample([207], { priority: 1 }) // somebody waits for it
   */
  priority?: number
  /**
   * Milliseconds from the call by which the images must be there. The call is refused at once with
   * ERR_DIT_DEADLINE when the measured time of a step says that they cannot be, and given up with the
   * same code as soon as they cannot be any more, so that nobody computes what comes too late. Never
   * met by fewer steps. Default: none.
   *
   * @example
   * await dit.sample([207], { steps: 25, deadline: 2000 })
   */
  deadline?: number
  /**
   * Who asks. Callers of equal priority share the lanes equally, however many calls and images each
   * has under way. Default: each call is a caller of its own.
   *
   * @example
   * await dit.sample([207, 360], { caller: 'user 17' })
   */
  caller?: string
  /** Shows what each image looks like so far, every so many of its steps. Default: never. */
  preview?: number | PreviewOptions
}

/**
 * When and how to show what an image looks like so far.
 *
 * @example
 * const preview = { every: 5, kind: 'decode' } as const
 * for await (const event of dit.stream([207], { preview })) {
 *   if (event.type === 'preview') await event.image.toFile(`step${event.step}.png`)
 * }
 */
export interface PreviewOptions {
  /** Steps between two previews of an image. */
  every: number
  /**
   * `'linear'`, the default: each pixel of the latent, through a linear approximation of the VAE, is
   * one pixel, so the preview of a 256×256 image has 32×32. It costs next to nothing; the first one
   * fits the approximation, which takes about as long as decoding two images. `'decode'`: the VAE itself, at full
   * size; the time it takes is that of all images in the making. For models without a VAE both are
   * the pixels.
   */
  kind?: 'linear' | 'decode'
}

/**
 * Options of `dit.decode`.
 *
 * @example
 * const latents = await dit.sample([207], { output: 'latent' })
 * const images = await dit.decode(latents, { signal: AbortSignal.timeout(10_000) })
 */
export interface DecodeOptions {
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal
}

/**
 * Options of `dit.encode`.
 *
 * @example
 * const images = await dit.sample([207, 360])
 * const latents = await dit.encode(images, { sample: true, seed: 7 })
 */
export interface EncodeOptions {
  /** Draws from the posterior instead of taking its mean. Default false. */
  sample?: boolean
  /** With `sample`: image i has seed `seed + i`. Default: random. */
  seed?: Seed
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal
}

/**
 * Options of `dit.save`.
 *
 * @example
 * await dit.save('my-model', { dtype: 'bf16', vae: false })
 */
export interface SaveOptions {
  /** How the weights are stored. Default: fp32, or bf16 when all weights are as they came, in bf16; nothing is lost either way. */
  dtype?: 'fp32' | 'bf16'
  /** Whether a diffusers folder gets the VAE too, when the model has one. Default true. */
  vae?: boolean
}

const maxInteger = Number.MAX_SAFE_INTEGER

// ---- schemas: the message of each is what was expected ----

type Test<T> = (value: unknown) => value is T

/** @internal */
export function is<T>(expected: string, test: Test<T> | ((value: unknown) => boolean)) {
  return v.custom<T>(test, expected)
}

/** @internal */
export function oneOf<const T extends string>(...values: T[]) {
  return is<T>(values.map(show).join(' or '), (value) => values.includes(value as T))
}

/** @internal */
export function integer(min: number, max = maxInteger) {
  const range = max === maxInteger ? `of at least ${min}` : `from ${min} to ${max}`
  return is<number>(`an integer ${range}`, (value) => isInteger(value, min, max))
}

/** @internal */
export function isInteger(value: unknown, min: number, max: number): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max
}

/** @internal */
export function isBetween(value: unknown, min: number, max: number): value is number {
  return typeof value === 'number' && value >= min && value <= max
}

/** @internal */
export function isPair(value: unknown, test: (item: unknown) => boolean): boolean {
  return Array.isArray(value) && value.length === 2 && value.every(test)
}

const maxSeed = 2n ** 64n - 1n
/** @internal */
export const seed = is<Seed>(
  'an integer from 0 to 2^53 - 1 or a bigint from 0n to 2^64 - 1',
  (value) =>
    isInteger(value, 0, Number.MAX_SAFE_INTEGER) ||
    (typeof value === 'bigint' && value >= 0n && value <= maxSeed),
)
/** @internal */
export const text = is<string>('a string', (value) => typeof value === 'string' && value !== '')
/** @internal */
export const flag = is<boolean>('true or false', (value) => typeof value === 'boolean')
/** @internal */
export const signal = is<AbortSignal>('an AbortSignal', (value) => value instanceof AbortSignal)
/** @internal */
export const callback = <T>() => is<T>('a function', (value) => typeof value === 'function')
const tensor = is<Tensor>('a Tensor { data, shape }', (value) => typeof value === 'object')
const positive = (value: unknown) => isInteger(value, 1, 1 << 16)

/** @internal */
export const deviceEntries = {
  device: v.optional(is<Device>("'auto', 'cpu', 'cuda' or 'cuda:<number>'", isDevice)),
  precision: v.optional(oneOf('fp32', 'tf32', 'bf16')),
  threads: v.optional(integer(0, 4096)),
  signal: v.optional(signal),
  onProgress: v.optional(callback<(progress: ModelProgress) => void>()),
}

const batchEntries = {
  maxBatch: v.optional(integer(1, 4096)),
  maxQueue: v.optional(integer(0)),
}

const id2label = v.optional(
  is<Record<number, string>>('an object from class numbers to names', isClassNames),
)

/** @internal */
export const loadSchema = v.strictObject({
  ...deviceEntries,
  ...batchEntries,
  weights: v.optional(oneOf('ema', 'model')),
  // Checked by lib/formats, which knows what fits together.
  config: v.optional(v.custom<DiTConfigInput | string>(() => true)),
  vae: v.optional(text),
  revision: v.optional(text),
  latentSize: v.optional(
    is<number | readonly [number, number]>(
      'a positive integer or [height, width]',
      (value) => positive(value) || isPair(value, positive),
    ),
  ),
  patchSize: v.optional(integer(1, 1024)),
  numClasses: v.optional(integer(1, 1 << 20)),
  id2label,
})

/** @internal */
export const createSchema = v.strictObject({
  ...deviceEntries,
  ...batchEntries,
  seed: v.optional(seed),
  vae: v.optional(text),
  id2label,
  schedule: v.optional(
    v.strictObject(
      {
        kind: v.optional(oneOf('linear', 'cosine')),
        steps: v.optional(integer(1, 1_000_000)),
        betaStart: v.optional(
          is<number>('a number from 0 to 1', (value) => isBetween(value, 0, 1)),
        ),
        betaEnd: v.optional(is<number>('a number from 0 to 1', (value) => isBetween(value, 0, 1))),
      },
      'an object',
    ),
  ),
})

function isClassNames(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false
  return Object.entries(value).every(([id, name]) => /^\d+$/.test(id) && typeof name === 'string')
}

function isPreview(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return isInteger(value, 1, maxInteger)
  const { every, kind = 'linear', ...rest } = value as PreviewOptions
  const known = kind === 'linear' || kind === 'decode'
  return isInteger(every, 1, maxInteger) && known && Object.keys(rest).length === 0
}

const maxPriority = 2 ** 31 - 1
const isDuration = (value: unknown) => isBetween(value, Number.MIN_VALUE, Number.MAX_VALUE)
const isGuidanceChannels = (value: unknown) => value === 'all' || isInteger(value, 1, 1 << 16)
// In fp32, which the model calculates in.
const isFiniteNumber = (value: unknown) =>
  typeof value === 'number' && Number.isFinite(Math.fround(value))
const guidanceChannels = v.optional(
  is<number | 'all'>("a positive integer or 'all'", isGuidanceChannels),
)

/** @internal */
export const sampleSchema = v.strictObject({
  sampler: v.optional(oneOf('dpm++', 'ddim', 'ddpm')),
  steps: v.optional(integer(1)),
  spacing: v.optional(
    is<number | string>(
      "a number of steps, 'ddimN' or a section list such as '10,15,20'",
      (value) => isInteger(value, 1, 1e6) || /^(ddim\d+|\d+(,\d+)*)$/.test(String(value)),
    ),
  ),
  eta: v.optional(is<number>('a number from 0 to 1', (value) => isBetween(value, 0, 1))),
  clip: v.optional(flag),
  guidance: v.optional(is<number>('a finite number', isFiniteNumber)),
  guidanceChannels,
  guidanceInterval: v.optional(
    is<readonly [number, number]>(
      '[from, to] with 0 <= from <= to <= 1',
      (value) =>
        isPair(value, (item) => isBetween(item, 0, 1)) &&
        (value as [number, number])[0] <= (value as [number, number])[1],
    ),
  ),
  seed: v.optional(seed),
  seeds: v.optional(v.array(seed, 'an array of seeds, one per image')),
  noise: v.optional(tensor),
  stepNoise: v.optional(tensor),
  output: v.optional(oneOf('image', 'latent')),
  signal: v.optional(signal),
  onProgress: v.optional(callback<(event: ProgressEvent | PreviewEvent) => void>()),
  priority: v.optional(integer(-maxPriority, maxPriority)),
  deadline: v.optional(is<number>('a positive number of milliseconds', isDuration)),
  caller: v.optional(text),
  preview: v.optional(
    is<number | PreviewOptions>('an integer of at least 1 or { every, kind }', isPreview),
  ),
})

/** @internal */
export const denoiseSchema = v.strictObject({
  x: v.custom<Tensor>(() => true),
  t: v.custom<number | ArrayLike<number>>(() => true),
  y: v.custom<unknown>(() => true),
  guidance: v.optional(is<number>('a finite number', isFiniteNumber)),
  guidanceChannels,
  signal: v.optional(signal),
})

/** @internal */
export const decodeSchema = v.strictObject({ signal: v.optional(signal) })

/** @internal */
export const encodeSchema = v.strictObject({
  sample: v.optional(flag),
  seed: v.optional(seed),
  signal: v.optional(signal),
})

/** @internal */
export const saveSchema = v.strictObject({
  dtype: v.optional(oneOf('fp32', 'bf16')),
  vae: v.optional(flag),
})

/**
 * Checks options against a schema.
 *
 * Throws ERR_DIT_OPTION that names the option, what was expected and what was given; for an option
 * that does not exist, the nearest that does.
 *
 * @internal
 */
export function check<S extends v.GenericSchema & { entries: v.ObjectEntries }>(
  schema: S,
  value: unknown,
  name = 'options',
): v.InferOutput<S> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidOption(name, 'an object', value)
  }
  const result = v.safeParse(schema, value, { abortEarly: true })
  if (result.success) return result.output
  const [issue] = result.issues
  const path = v.getDotPath(issue) ?? name
  if (issue.type === 'strict_object' && issue.expected === 'never') {
    throw new DiTError('ERR_DIT_OPTION', unknownOption(path, Object.keys(schema.entries)))
  }
  if (issue.type === 'strict_object') throw invalidOption(path, 'a value', undefined)
  throw invalidOption(path, issue.message, issue.input)
}

function unknownOption(name: string, known: string[]): string {
  const distances = known.map((option) => ({
    option,
    distance: nearness(name.toLowerCase(), option.toLowerCase()),
  }))
  const [nearest] = distances.sort((a, b) => a.distance - b.distance)
  const hint =
    nearest !== undefined && nearest.distance <= Math.max(2, name.length / 3)
      ? `Did you mean ${show(nearest.option)}?`
      : `There are ${known.join(', ')}`
  return `There is no option ${show(name)}. ${hint}`
}
