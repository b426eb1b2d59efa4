// Every option of training: what it means, and the check of its value.

import * as v from 'valibot'
import type { SkippedItem } from '../data/types.js'
import { DiTError, invalidOption } from '../errors.js'
import type { DiTConfig } from '../formats/types.js'
import {
  callback,
  flag,
  integer,
  is,
  isBetween,
  isInteger,
  oneOf,
  type SampleOptions,
  type Seed,
  seed,
  signal,
  text,
} from '../options.js'
import { randomSeed } from '../sampling.js'

/**
 * The learning rate of each step. `'constant'`: `lr`. `'linear'`: from 0 to `lr` in `warmup` steps,
 * then constant. `'cosine'`: the same, then along half a cosine down to `minLr` at the last step. Or
 * a function of the number of the step, from 1, that gives the rate itself.
 */
export type LearningRateSchedule = 'constant' | 'linear' | 'cosine' | ((step: number) => number)

/**
 * Options of `dit.trainer`. The defaults are those of the DiT paper (Peebles & Xie 2022, section 4) where it
 * says something.
 *
 * @example
 * const trainer = await dit.trainer({ batchSize: 'auto', globalBatch: 64, lr: 2e-4, emaDecay: 0.999 })
 */
export interface TrainerOptions {
  /**
   * Rows that go through the model at once. Default `'auto'`: as many as fit into the memory, chosen
   * once for all of a training. The rest of the global batch follows, its gradients added up. Another
   * number rounds sums differently; results are the same bit for bit where it is the same.
   */
  batchSize?: number | 'auto'
  /** Rows of a step. Default: `batchSize` where that is a number, else 256. */
  globalBatch?: number
  /** For weights, optimiser and activations: bytes, or such as `'4GB'`. Default: what is free. */
  memoryLimit?: number | string
  /** Steps in all, those before a resume included. `schedule: 'cosine'` needs them. */
  steps?: number
  /** The learning rate, after the warm-up. Default 1e-4. */
  lr?: number
  /** How the learning rate changes. Default `'constant'`, as in the paper. */
  schedule?: LearningRateSchedule
  /** Steps of `'linear'` and `'cosine'` in which the rate grows. Default: 5 % of `steps`, at most the usual 10 000. */
  warmup?: number
  /** The rate that `'cosine'` ends with. Default 0. */
  minLr?: number
  /** Decoupled weight decay of AdamW (Loshchilov & Hutter 2019). Default 0. */
  weightDecay?: number
  /** Weight decay on biases and the label table, too. Default false: on matrices alone. */
  decayAll?: boolean
  /** Decay of AdamW's two moments. Default `[0.9, 0.999]`. */
  betas?: readonly [beta1: number, beta2: number]
  /** What AdamW adds to the root of the second moment. Default 1e-8. */
  eps?: number
  /**
   * Share of the averaged weights, which are sampled and saved, that stays in each step. Default 0.9999.
   */
  emaDecay?: number
  /**
   * Averages over fewer steps at first: step n keeps min(emaDecay, (1 + n) / (10 + n)), so that short
   * trainings, too, forget the random weights they began with. Default true. False: `emaDecay` throughout,
   * as in the paper; then the beginning fades in some 3 / (1 - emaDecay) steps.
   */
  emaWarmup?: boolean
  /** Larger gradients are scaled down to this norm. Default 1; 0: never, as in the paper. */
  clipNorm?: number
  /**
   * `'hybrid'`: mean squared error and the variance's bound (Nichol & Dhariwal 2021), for models that
   * learn sigma, and their default. `'mse'`: the error alone.
   */
  loss?: 'hybrid' | 'mse'
  /** Share of labels replaced by the null class. Default 0.1, 0 for models without one. */
  labelDropout?: number
  /**
   * What of the forward pass is kept for the backward pass. `'none'`, the default: all of it is.
   * `'block'`: each block's input, the block is computed again. `{ every: k }`: the same for k blocks
   * at once. The gradients are the same, bit for bit.
   */
  checkpointing?: 'none' | 'block' | { every: number }
  /** Of noise, timesteps, dropped labels and the order of the data. Default: random. */
  seed?: Seed
  /**
   * A step whose gradient's norm is so many times the median of the last 100 is skipped, once 100
   * steps are done. Default 10; 0: never.
   */
  spikeFactor?: number
}

/**
 * How the sample grid is made: a column for each label.
 *
 * @example
 * const samples: SampleGridOptions = { labels: [0, 1, 2], rows: 2, guidance: 4, steps: 25 }
 * for await (const _ of dit.train('photos', { steps: 1000, sampleEvery: 100, samples })) continue
 */
export interface SampleGridOptions
  extends Pick<SampleOptions, 'sampler' | 'steps' | 'guidance' | 'clip' | 'eta'> {
  /** Class numbers or names. Default: the first 10 classes. */
  labels?: readonly (number | string)[]
  /** Images of each. Default 4. */
  rows?: number
  /** The image in row r and column c has seed `seed + r * columns + c`. Default 0. */
  seed?: Seed
}

/**
 * Options of `dit.train`.
 *
 * @example
 * const options: TrainOptions = { epochs: 20, flip: true, out: 'runs/photos', saveEvery: 500, resume: true }
 * for await (const event of dit.train('photos', options)) console.log(event)
 */
export interface TrainOptions extends TrainerOptions {
  /** Instead of `steps`: how often every item is seen. */
  epochs?: number
  /** Mirrors half of the images. Default false. */
  flip?: boolean
  /** Threads that decode images. Default: as many as there are processors, at most 8. */
  workers?: number
  /** What a damaged image does: it is reported and passed over (the default), or ends the training. */
  onBadItem?: 'skip' | 'error'
  /**
   * A folder for what the training leaves: `checkpoints/`, `metrics.jsonl`, `samples/`, and at the end
   * the averaged weights as `model.safetensors`. Default: nothing is written.
   */
  out?: string
  /** Steps between two checkpoints. Default 1000. */
  saveEvery?: number
  /** Checkpoints that are kept, the newest. Default 3. */
  keep?: number
  /**
   * Goes on from `out`'s latest checkpoint, or from the checkpoint given. With `true` and no checkpoint
   * yet, training starts. What is not given in the options is as it was; `data` must be given again.
   */
  resume?: boolean | string
  /** Names of options that may differ from those of the checkpoint; `'data'`: any of the data. */
  allowChanges?: readonly string[]
  /** Steps between two sample grids in `out`'s `samples/`. Default: none are made. */
  sampleEvery?: number
  /** What is on them. */
  samples?: SampleGridOptions
  /** Steps between two events; the losses of one are the means of its steps. Default 1. */
  logEvery?: number
  /** So many skipped steps in a row, and training goes back to the latest checkpoint. Default 5. */
  maxSkipped?: number
  /** What the learning rate is multiplied with then. Default 0.5. */
  rollbackLrFactor?: number
  /**
   * Ends the training at once: the step under way is dropped, a checkpoint is saved where there is an
   * `out`, and the iteration throws `signal.reason`.
   */
  signal?: AbortSignal
  /** Called for every item of the data that cannot be used. */
  onSkippedItem?: (item: SkippedItem) => void
}

// In fp32, which the model calculates in.
const isFinite32 = (value: unknown) =>
  typeof value === 'number' && Number.isFinite(Math.fround(value))
const notNegative = is<number>(
  'a finite number of at least 0',
  (value) => isFinite32(value) && (value as number) >= 0,
)
const isShare = (value: unknown) => isBetween(value, 0, 1) && Math.fround(value) < 1

const trainerEntries = {
  batchSize: v.optional(
    is<number | 'auto'>(
      "a positive integer or 'auto'",
      (value) => value === 'auto' || isInteger(value, 1, 1 << 20),
    ),
  ),
  globalBatch: v.optional(integer(1, 1 << 20)),
  memoryLimit: v.optional(
    is<number | string>("bytes, or such as '4GB'", (value) => parseBytes(value) !== undefined),
  ),
  steps: v.optional(integer(1)),
  lr: v.optional(notNegative),
  schedule: v.optional(
    is<LearningRateSchedule>(
      "'constant', 'linear', 'cosine' or a function of the step",
      (value) =>
        typeof value === 'function' || ['constant', 'linear', 'cosine'].includes(value as string),
    ),
  ),
  warmup: v.optional(integer(0)),
  minLr: v.optional(notNegative),
  weightDecay: v.optional(notNegative),
  decayAll: v.optional(flag),
  betas: v.optional(
    is<readonly [number, number]>(
      'two numbers of at least 0 and less than 1',
      (value) => Array.isArray(value) && value.length === 2 && value.every(isShare),
    ),
  ),
  eps: v.optional(
    is<number>(
      'a positive number',
      (value) => isFinite32(value) && Math.fround(value as number) > 0,
    ),
  ),
  emaDecay: v.optional(is<number>('a number from 0 to 1', (value) => isBetween(value, 0, 1))),
  emaWarmup: v.optional(flag),
  clipNorm: v.optional(notNegative),
  loss: v.optional(oneOf('hybrid', 'mse')),
  labelDropout: v.optional(is<number>('a number from 0 to 1', (value) => isBetween(value, 0, 1))),
  checkpointing: v.optional(
    is<'none' | 'block' | { every: number }>(
      "'none', 'block' or { every: k }",
      (value) =>
        value === 'none' ||
        value === 'block' ||
        (typeof value === 'object' &&
          value !== null &&
          isInteger((value as { every?: unknown }).every, 1, 1000)),
    ),
  ),
  seed: v.optional(seed),
  spikeFactor: v.optional(
    is<number>('a number of at least 1, or 0', (value) => {
      return isFinite32(value) && ((value as number) >= 1 || value === 0)
    }),
  ),
}

/** @internal */
export const trainerSchema = v.strictObject(trainerEntries)

/** @internal */
export const trainSchema = v.strictObject({
  ...trainerEntries,
  epochs: v.optional(
    is<number>('a positive number', (value) => isFinite32(value) && (value as number) > 0),
  ),
  flip: v.optional(flag),
  workers: v.optional(integer(0, 256)),
  onBadItem: v.optional(oneOf('skip', 'error')),
  out: v.optional(text),
  saveEvery: v.optional(integer(1)),
  keep: v.optional(integer(1)),
  resume: v.optional(
    is<boolean | string>(
      'true, false or the folder of a checkpoint',
      (value) => typeof value === 'boolean' || (typeof value === 'string' && value !== ''),
    ),
  ),
  allowChanges: v.optional(v.array(text, 'an array of names of options')),
  sampleEvery: v.optional(integer(1)),
  samples: v.optional(
    // What is also an option of `dit.sample` is checked there.
    v.strictObject(
      {
        sampler: v.optional(v.custom<'dpm++'>(() => true)),
        steps: v.optional(v.custom<number>(() => true)),
        guidance: v.optional(v.custom<number>(() => true)),
        clip: v.optional(v.custom<boolean>(() => true)),
        eta: v.optional(v.custom<number>(() => true)),
        labels: v.optional(
          is<readonly (number | string)[]>('an array of labels', (value) => {
            return Array.isArray(value) && value.length > 0
          }),
        ),
        rows: v.optional(integer(1, 1000)),
        seed: v.optional(seed),
      },
      'an object',
    ),
  ),
  logEvery: v.optional(integer(1)),
  maxSkipped: v.optional(integer(1)),
  rollbackLrFactor: v.optional(
    is<number>('a number above 0, at most 1', (value) => isBetween(value, 1e-6, 1)),
  ),
  signal: v.optional(signal),
  onSkippedItem: v.optional(callback<(item: SkippedItem) => void>()),
})

const byteUnits: Record<string, number> = {
  '': 1,
  k: 1e3,
  K: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
}

/** 4e9 and '4GB', '3.5 GiB', '500M' as bytes; undefined for anything else. @internal */
export function parseBytes(value: unknown): number | undefined {
  if (isInteger(value, 1, Number.MAX_SAFE_INTEGER)) return value
  const [, number, unit = ''] =
    /^(\d+(?:\.\d+)?) ?((?:k|[KMGT]i?)?)B?$/.exec(typeof value === 'string' ? value : '') ?? []
  const bytes = Math.floor(Number(number) * (byteUnits[unit] as number))
  return Number.isSafeInteger(bytes) && bytes > 0 ? bytes : undefined
}

/**
 * The options that decide what a training computes, and how it is divided, complete; as they are kept in
 * a checkpoint. Of a schedule that is a function, only that it is one.
 *
 * @internal
 */
export interface TrainingSettings {
  batchSize: number | 'auto'
  globalBatch: number
  memoryLimit: number // bytes; 0: what is free
  steps: number | null
  lr: number
  schedule: 'constant' | 'linear' | 'cosine' | 'function'
  warmup: number
  minLr: number
  weightDecay: number
  decayAll: boolean
  betas: [number, number]
  eps: number
  emaDecay: number
  emaWarmup: boolean
  clipNorm: number
  loss: 'hybrid' | 'mse'
  labelDropout: number
  checkpointEvery: number // as bindings.d.ts has it
  seed: string // in decimal
  spikeFactor: number
  flip: boolean
  maxSkipped: number
  rollbackLrFactor: number
}

/**
 * Fills in what is not given: from the checkpoint that training goes on from, else the defaults.
 *
 * Throws ERR_DIT_OPTION for options that do not go together or not with the model.
 *
 * @internal
 */
export function resolveSettings(
  given: TrainOptions,
  config: DiTConfig,
  stored?: TrainingSettings,
): TrainingSettings {
  const batchSize = given.batchSize ?? stored?.batchSize ?? 'auto'
  const steps = given.steps ?? stored?.steps ?? null
  const schedule = given.schedule ?? stored?.schedule ?? 'constant'
  const ramps = schedule === 'linear' || schedule === 'cosine'
  const settings: TrainingSettings = {
    batchSize,
    globalBatch:
      given.globalBatch ?? stored?.globalBatch ?? (batchSize === 'auto' ? 256 : batchSize),
    memoryLimit: parseBytes(given.memoryLimit) ?? stored?.memoryLimit ?? 0,
    steps,
    lr: given.lr ?? stored?.lr ?? 1e-4,
    schedule: typeof schedule === 'function' ? 'function' : schedule,
    warmup: given.warmup ?? stored?.warmup ?? (ramps ? usualWarmup(steps) : 0),
    minLr: given.minLr ?? stored?.minLr ?? 0,
    weightDecay: given.weightDecay ?? stored?.weightDecay ?? 0,
    decayAll: given.decayAll ?? stored?.decayAll ?? false,
    betas: [...(given.betas ?? stored?.betas ?? ([0.9, 0.999] as const))],
    eps: given.eps ?? stored?.eps ?? 1e-8,
    emaDecay: given.emaDecay ?? stored?.emaDecay ?? 0.9999,
    emaWarmup: given.emaWarmup ?? stored?.emaWarmup ?? true,
    clipNorm: given.clipNorm ?? stored?.clipNorm ?? 1,
    loss: given.loss ?? stored?.loss ?? (config.learnSigma ? 'hybrid' : 'mse'),
    labelDropout: given.labelDropout ?? stored?.labelDropout ?? (config.nullClass ? 0.1 : 0),
    checkpointEvery: replayed(given.checkpointing) ?? stored?.checkpointEvery ?? 0,
    seed: String(given.seed ?? stored?.seed ?? randomSeed()),
    spikeFactor: given.spikeFactor ?? stored?.spikeFactor ?? 10,
    flip: given.flip ?? stored?.flip ?? false,
    maxSkipped: given.maxSkipped ?? stored?.maxSkipped ?? 5,
    rollbackLrFactor: given.rollbackLrFactor ?? stored?.rollbackLrFactor ?? 0.5,
  }
  checkSettings(settings, given, config)
  return settings
}

/** 10 000 steps are usual for long trainings; a short one has no time for them. */
function usualWarmup(steps: number | null): number {
  return Math.min(10_000, Math.ceil(0.05 * (steps ?? Number.POSITIVE_INFINITY)))
}

function replayed(checkpointing: TrainerOptions['checkpointing']): number | undefined {
  if (checkpointing === undefined) return undefined
  if (checkpointing === 'none') return 0
  return checkpointing === 'block' ? 1 : checkpointing.every
}

function checkSettings(
  settings: TrainingSettings,
  { schedule }: TrainOptions,
  config: DiTConfig,
): void {
  const { steps, warmup, lr, minLr } = settings
  if (settings.schedule === 'function' && typeof schedule !== 'function') {
    throw invalidOption(
      'schedule',
      'the function that the training began with (a checkpoint cannot hold it)',
      schedule,
    )
  }
  if (settings.schedule === 'cosine') {
    if (steps === null) {
      throw invalidOption('steps', "a number of steps, which schedule 'cosine' needs,", undefined)
    }
    if (warmup >= steps) throw invalidOption('warmup', `less than steps, ${steps},`, warmup)
    if (minLr > lr) throw invalidOption('minLr', `at most lr, ${lr},`, minLr)
  }
  if (settings.loss === 'hybrid' && !config.learnSigma) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      "Expected 'mse' for loss but got 'hybrid': this model does not learn the variance",
    )
  }
  if (settings.labelDropout > 0 && !config.nullClass) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      `Expected 0 for labelDropout but got ${settings.labelDropout}: this model has no null class`,
    )
  }
}
