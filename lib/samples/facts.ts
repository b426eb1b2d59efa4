// What a set of samples is: everything that its images follow from, and nothing else.

import { createHash } from 'node:crypto'
import * as v from 'valibot'
import type { DiT } from '../dit.js'
import { invalidOption, show } from '../errors.js'
import { resolveLabels } from '../labels.js'
import { native } from '../native.js'
import * as options from '../options.js'
import { countSteps, downscale, planSample } from '../sampling.js'

/** What set.json among the parts says, and the first half of the sidecar. */
export interface SampleSetFacts {
  format: 'dit-native samples'
  version: 1
  /** Images. */
  count: number
  /** Of each image. */
  shape: [height: number, width: number, channels: number]
  /** Class numbers, in turn; or 'all' of them in turn; or drawn at 'random'. */
  labels: number[] | 'all' | 'random'
  numClasses: number
  /** Of the first image, as a decimal number. */
  seed: string
  sampler: 'dpm++' | 'ddim' | 'ddpm'
  /** Evaluations of the model for an image, and which timesteps they are at. */
  steps: number
  spacing: string
  eta: number
  clip: boolean
  guidance: number
  guidanceChannels: number
  guidanceInterval: [from: number, to: number]
  precision: options.Precision
  /** The kind of device: another kind rounds differently. */
  device: 'cpu' | 'cuda'
  /** `dit.weightsHash()`. */
  weights: string
  /** Of this package. */
  ditNative: string
}

const size = v.pipe(v.number(), v.safeInteger(), v.minValue(0))

/** @internal */
export const factsSchema = v.strictObject({
  format: v.literal('dit-native samples'),
  version: v.literal(1),
  count: size,
  shape: v.strictTuple([size, size, size]),
  labels: v.union([v.array(size), v.picklist(['all', 'random'])]),
  numClasses: size,
  seed: v.string(),
  sampler: v.picklist(['dpm++', 'ddim', 'ddpm']),
  steps: size,
  spacing: v.string(),
  eta: v.number(),
  clip: v.boolean(),
  guidance: v.number(),
  guidanceChannels: size,
  guidanceInterval: v.strictTuple([v.number(), v.number()]),
  precision: v.picklist(['fp32', 'tf32', 'bf16']),
  device: v.picklist(['cpu', 'cuda']),
  weights: v.string(),
  ditNative: v.string(),
})

/** Progress of `sampleSet`. */
export interface SampleSetProgress {
  /** Images of this call's share are made, then all are joined. */
  phase: 'sample' | 'join'
  /** Images so far, those included that were there before. */
  done: number
  /** Images of this phase in all. */
  total: number
}

/**
 * Options of `sampleSet`.
 *
 * @example
 * const options: SampleSetOptions = { out: 'owls.npz', count: 1000, labels: ['owl'], steps: 50, seed: 1 }
 */
export interface SampleSetOptions extends options.ProcessOptions {
  /** The file: a name that ends in .npz. Unfinished parts lie in a folder beside it. */
  out: string
  /** Images in all. */
  count: number
  /**
   * Class numbers or names, taken in turn: image k has label k mod n. Default: all classes of the model
   * in turn, each equally often. `'random'`: drawn for each image, from the seed and its number.
   */
  labels?: readonly (number | string)[] | 'random'
  /** Image k has seed `seed + k`. Default 0. */
  seed?: options.Seed
  /** `[i, n]`: this process makes the i-th of n shares, i from 1 to n. Default `[1, 1]`: everything. */
  shard?: readonly [i: number, n: number]
  /** Ends it, with what is finished in the folder of parts. */
  signal?: AbortSignal
  /** Told of every image. */
  onProgress?: (progress: SampleSetProgress) => void
}

const isShard = (value: unknown) =>
  options.isPair(value, (item) => options.isInteger(item, 1, 1 << 20)) &&
  (value as [number, number])[0] <= (value as [number, number])[1]

/** @internal */
export const sampleSetSchema = v.strictObject({
  ...v.pick(options.sampleSchema, options.processOptions).entries,
  out: options.is<string>(
    'a name that ends in .npz',
    (value) => typeof value === 'string' && /[^/]\.npz$/.test(value),
  ),
  count: options.integer(1, 1e7),
  labels: v.optional(
    options.is<readonly (number | string)[] | 'random'>(
      "class numbers or names, or 'random'",
      (value) => value === 'random' || (Array.isArray(value) && value.length > 0),
    ),
  ),
  seed: v.optional(options.seed),
  shard: v.optional(options.is<readonly [number, number]>('[i, n] with 1 <= i <= n', isShard)),
  signal: v.optional(options.signal),
  onProgress: v.optional(options.callback<(progress: SampleSetProgress) => void>()),
})

/** Throws ERR_DIT_OPTION for options that do not fit the model. */
export async function describeSet(dit: DiT, given: SampleSetOptions): Promise<SampleSetFacts> {
  const { config, vae, schedule, classNames } = dit
  const { out, count, labels, seed = 0, shard, signal, onProgress, ...sampleOptions } = given
  if (Array.isArray(labels) && labels.some((label) => typeof label === 'object')) {
    throw invalidOption(
      'labels',
      'class numbers or names (a set of samples has no embeddings)',
      labels,
    )
  }
  const { parts } = planSample(dit, [0], sampleOptions)
  const { request } = parts[0] as (typeof parts)[number]
  const { sampler, spacing, eta, clip, guidance, guidanceChannels, guidanceInterval } = request
  const scale = vae ? downscale(vae) : 1
  const [height, width] = config.latentSize
  const list = Array.isArray(labels) && resolveLabels(labels, config, classNames).classes
  return {
    format: 'dit-native samples',
    version: 1,
    count,
    shape: [height * scale, width * scale, vae?.outChannels ?? config.channels],
    labels: list || (labels === 'random' ? 'random' : 'all'),
    numClasses: config.numClasses,
    seed: String(seed),
    sampler,
    steps: countSteps(schedule, spacing),
    spacing,
    eta,
    clip,
    guidance,
    guidanceChannels,
    guidanceInterval,
    precision: dit.precision,
    device: dit.device === 'cpu' ? 'cpu' : 'cuda',
    weights: await dit.weightsHash(),
    ditNative: native().version,
  }
}

/** The label of image k. */
export function labelOf({ labels, numClasses, seed }: SampleSetFacts, k: number): number {
  if (labels === 'all') return k % numClasses
  if (labels !== 'random') return labels[k % labels.length] as number
  // 48 bits of SHA-256: that some classes are likelier is below 1e-8 for any number of them.
  const digest = createHash('sha256').update(`label ${seed} ${k}`).digest()
  return digest.readUIntBE(0, 6) % numClasses
}

/** The seed of image k. */
export function seedOf({ seed }: SampleSetFacts, k: number): bigint {
  return BigInt.asUintN(64, BigInt(seed) + BigInt(k))
}

/** What is different, in words. */
export function differences(was: SampleSetFacts, is: SampleSetFacts): string[] {
  const before = new Map<string, unknown>(Object.entries(was))
  return Object.entries(is)
    .filter(([name, value]) => JSON.stringify(before.get(name)) !== JSON.stringify(value))
    .map(([name, value]) => `${name} (was ${show(before.get(name))}, is ${show(value)})`)
}
