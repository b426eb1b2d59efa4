// trainer.json: what a checkpoint holds beside the weights, and what of it a resume may not change.

import * as v from 'valibot'
import { badFormat, DiTError, show } from '../errors.js'
import { parseFile } from '../formats/dit_config.js'
import type { DiTConfig, ScheduleConfig } from '../formats/types.js'
import type { Precision } from '../options.js'
import type { TrainingSettings } from './options.js'

/** The format that is written. Another one is refused. */
const formatVersion = 1

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0))
const number = v.pipe(v.number(), v.finite())

const settingsSchema = v.object({
  batchSize: v.union([count, v.literal('auto')]),
  globalBatch: count,
  memoryLimit: count,
  steps: v.nullable(count),
  lr: number,
  schedule: v.picklist(['constant', 'linear', 'cosine', 'function']),
  warmup: count,
  minLr: number,
  weightDecay: number,
  decayAll: v.optional(v.boolean(), false),
  betas: v.strictTuple([number, number]),
  eps: number,
  emaDecay: number,
  emaWarmup: v.optional(v.boolean(), false),
  clipNorm: number,
  loss: v.picklist(['hybrid', 'mse']),
  labelDropout: number,
  checkpointEvery: count,
  seed: v.pipe(v.string(), v.regex(/^\d{1,20}$/)),
  spikeFactor: number,
  flip: v.boolean(),
  maxSkipped: count,
  rollbackLrFactor: number,
})

const stateSchema = v.object({
  formatVersion: v.literal(formatVersion),
  step: count,
  settings: settingsSchema,
  /** What rollbacks have made of the learning rate. */
  lrFactor: number,
  /** Gradient norms of the last steps. */
  norms: v.array(number),
  skippedSteps: count,
  skippedInRow: count,
  model: v.object({
    precision: v.picklist(['fp32', 'tf32', 'bf16']),
    config: v.record(v.string(), v.unknown()),
    diffusion: v.record(v.string(), v.unknown()),
    classNames: v.record(v.string(), v.string()),
  }),
  /** Of `dit.train`; null in a checkpoint that `trainer.save` wrote. */
  data: v.nullable(
    v.object({
      position: count,
      skippedItems: count,
      fingerprint: v.record(v.string(), v.union([v.string(), v.number(), v.boolean()])),
      /** Bytes of metrics.jsonl that belong to this checkpoint. */
      metricsBytes: count,
    }),
  ),
})

/** What a checkpoint holds beside the weights. @internal */
export type TrainerState = v.InferOutput<typeof stateSchema>

/** Where the data stood. @internal */
export type DataState = NonNullable<TrainerState['data']>

/** The model of a training, as checkpoints describe it. @internal */
export interface TrainedModel {
  config: DiTConfig
  diffusion: ScheduleConfig
  precision: Precision
  classNames: Readonly<Record<number, string>>
}

/** @internal */
export function newState(state: Omit<TrainerState, 'formatVersion'>): TrainerState {
  return { formatVersion, ...state }
}

/** Throws ERR_DIT_FORMAT for what is no state of a training. @internal */
export function parseState(json: unknown, file: string): TrainerState {
  const version = (json as { formatVersion?: unknown } | null | undefined)?.formatVersion
  if (version !== formatVersion) {
    throw badFormat(
      file,
      `expected a training's state of format ${formatVersion}, which this version reads, but got ` +
        `format ${show(version)}`,
    )
  }
  return parseFile(stateSchema, json, file)
}

/**
 * Settings that may always differ: how the work is divided, and where it ends (which a cosine depends on;
 * see below). All others change what a training computes.
 */
const free: ReadonlySet<string> = new Set([
  'batchSize',
  'memoryLimit',
  'checkpointEvery',
  'steps',
] satisfies (keyof TrainingSettings)[])

const decisive = Object.keys(settingsSchema.entries).filter(
  (name) => !free.has(name),
) as (keyof TrainingSettings)[]

interface Compared {
  settings: TrainingSettings
  model: Omit<TrainedModel, 'classNames'>
  fingerprint?: Readonly<Record<string, unknown>>
}

/** Everything that must be as it was, by the name that an error gives it. */
function decisiveValues(
  { settings, model, fingerprint }: Compared,
  withData: boolean,
): Map<string, unknown> {
  const prefixed = (prefix: string, values: object) =>
    Object.entries(values).map(([key, value]) => [`${prefix}.${key}`, value] as const)
  return new Map<string, unknown>([
    ...decisive.map((name) => [name, settings[name]] as const),
    // The cosine ends at the last step.
    ...(settings.schedule === 'cosine' ? ([['steps', settings.steps]] as const) : []),
    ['precision', model.precision],
    ...prefixed('config', model.config),
    ...prefixed('diffusion', model.diffusion),
    ...(withData ? prefixed('data', fingerprint ?? {}) : []),
  ])
}

/**
 * Refuses to go on with something else than the checkpoint was made with.
 *
 * @param allowed Names of what may differ: of an option, of one thing (`'data.length'`) or of all of
 * its kind (`'data'`).
 *
 * Throws ERR_DIT_OPTION that names everything that differs, with both values; also for a name in
 * `allowed` that there is not.
 *
 * @internal
 */
export function checkUnchanged(
  where: string,
  was: Compared,
  is: Compared,
  allowed: readonly string[] = [],
): void {
  // With `dit.trainer`, the caller brings the data.
  const withData = was.fingerprint !== undefined && is.fingerprint !== undefined
  const before = decisiveValues(was, withData)
  const after = decisiveValues(is, withData)
  const names = [...new Set([...before.keys(), ...after.keys()])]
  const covers = (name: string) => (one: string) => name === one || one.startsWith(`${name}.`)
  const unknown = allowed.find((name) => name !== 'steps' && !names.some(covers(name)))
  if (unknown !== undefined) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      `allowChanges: there is no ${show(unknown)}, only ${names.join(', ')}`,
    )
  }
  const changed = names.filter((name) => {
    const same = JSON.stringify(before.get(name)) === JSON.stringify(after.get(name))
    return !same && !allowed.some((one) => covers(one)(name))
  })
  if (changed.length === 0) return
  const list = changed.map((name) => {
    return `${name} was ${show(before.get(name))} and is ${show(after.get(name))}`
  })
  throw new DiTError(
    'ERR_DIT_OPTION',
    `${where} was made with other options: ${list.join('; ')}. Give the same, leave them out, or name ` +
      `them in allowChanges: ${JSON.stringify(changed)} (--allow-changes ${changed.join(',')})`,
  )
}
